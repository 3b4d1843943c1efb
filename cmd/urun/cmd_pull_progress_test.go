package main

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/urun-dev/urun/internal/image"
)

func TestProgressLineFitsTheTerminal(t *testing.T) {
	p := &progress{current: make(map[digest.Digest]int64), started: time.Now().Add(-time.Second)}
	p.count(image.Event{Kind: image.EventResolve, Ref: "quay.io/some/image:1"})
	p.count(image.Event{Kind: image.EventFound, Count: 9, Total: 200e6})
	p.count(image.Event{Kind: image.EventFetch, Layer: digest.FromString("a"), Current: 100e6})
	for width := range 200 {
		if line := p.line(width); len(line) > width {
			t.Errorf("%d columns: %q", width, line)
		}
	}
	if line := p.line(100); !strings.Contains(line, "0/9 [####") || !strings.Contains(line, "100MB / 200MB") {
		t.Errorf("line is %q", line)
	}
	p.count(image.Event{Kind: image.EventDone, Layer: digest.FromString("a"), Total: 150e6})
	p.count(image.Event{Kind: image.EventExists, Layer: digest.FromString("b"), Total: 50e6})
	if line := p.line(100); !strings.Contains(line, "2/9") || !strings.Contains(line, "200MB / 200MB") {
		t.Errorf("line is %q", line)
	}
}
