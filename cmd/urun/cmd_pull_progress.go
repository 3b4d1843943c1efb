package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"golang.org/x/term"

	"github.com/urun-dev/urun/internal/image"
)

// progress shows the events of a pull: one line that is drawn again and again on a terminal, a line for each
// finished step elsewhere, JSON on standard output, or nothing.
type progress struct {
	json     *json.Encoder
	plain    io.Writer
	terminal *os.File

	ref     string
	layers  int
	total   int64
	done    int
	started time.Time
	current map[digest.Digest]int64
	drawn   time.Time
	shown   bool // a line is on the terminal that has to be wiped
}

// drawable tells whether what is written to a file may go back over what is there.
// Colours urun has none.
func drawable(f *os.File) bool { return isTerminal(f) && os.Getenv("TERM") != "dumb" }

func newProgress(app *App, quiet, asJSON bool) *progress {
	p := &progress{current: make(map[digest.Digest]int64), started: time.Now()}
	switch f, isFile := app.Stderr.(*os.File); {
	case asJSON:
		p.json = json.NewEncoder(app.Stdout)
	case quiet:
	case isFile && drawable(f):
		p.terminal = f
	default:
		p.plain = app.Stderr
	}
	return p
}

// event takes one event. What cannot be shown is not worth ending a pull for, so errors of the terminal are not looked at.
func (p *progress) event(e image.Event) {
	p.count(e)
	switch {
	case p.json != nil:
		_ = p.json.Encode(e)
	case p.terminal != nil:
		p.draw(e)
	case p.plain != nil:
		if line := plainLine(e); line != "" {
			fmt.Fprintln(p.plain, line)
		}
	}
}

func (p *progress) count(e image.Event) {
	switch e.Kind {
	case image.EventResolve:
		p.ref = e.Ref
	case image.EventFound:
		p.layers, p.total = e.Count, e.Total
	case image.EventFetch:
		p.current[e.Layer] = e.Current
	case image.EventDone, image.EventExists:
		p.done++
		p.current[e.Layer] = e.Total
	}
}

func plainLine(e image.Event) string {
	short := func() string { return e.Layer.Encoded()[:12] }
	switch e.Kind {
	case image.EventResolve:
		return "pulling " + e.Ref
	case image.EventExists:
		return "layer " + short() + ": already here"
	case image.EventWait:
		return "layer " + short() + ": waiting for another pull"
	case image.EventDone:
		if e.Total > 0 {
			return fmt.Sprintf("layer %s: done, %s", short(), units.HumanSize(float64(e.Total)))
		}
		return "layer " + short() + ": done"
	case image.EventRetry:
		return "trying again: " + e.Message
	case image.EventWarning:
		return "warning: " + e.Message
	}
	return ""
}

// draw redraws the line, ten times a second at most.
func (p *progress) draw(e image.Event) {
	if e.Kind == image.EventRetry || e.Kind == image.EventWarning {
		p.wipe()
		fmt.Fprintln(p.terminal, plainLine(e))
	}
	if e.Kind == image.EventFetch && time.Since(p.drawn) < 100*time.Millisecond {
		return
	}
	p.drawn = time.Now()
	width, _, err := term.GetSize(int(p.terminal.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	fmt.Fprintf(p.terminal, "\r%s\x1b[K", p.line(width-1))
	p.shown = true
}

// line is what the terminal shows: NAME 3/9 [####    ] 120MB / 230MB, 45MB/s.
func (p *progress) line(width int) string {
	if p.layers == 0 {
		return cut("pulling "+p.ref, width)
	}
	var have int64
	for _, n := range p.current {
		have += n
	}
	speed := float64(have) / max(time.Since(p.started).Seconds(), 0.001)
	left := fmt.Sprintf("%s %d/%d", p.ref, p.done, p.layers)
	right := fmt.Sprintf("%s / %s, %s/s", units.HumanSize(float64(have)), units.HumanSize(float64(p.total)), units.HumanSize(speed))
	room := width - len(left) - len(right) - 4
	if room < 8 {
		return cut(left+" "+right, width)
	}
	room = min(room, 40)
	filled := 0
	if p.total > 0 {
		filled = int(min(have, p.total) * int64(room) / p.total)
	}
	return fmt.Sprintf("%s [%s%s] %s", left, strings.Repeat("#", filled), strings.Repeat(" ", room-filled), right)
}

func cut(s string, width int) string { return s[:min(len(s), width)] }

func (p *progress) wipe() {
	if p.shown {
		fmt.Fprint(p.terminal, "\r\x1b[K")
		p.shown = false
	}
}

// end takes the line off the terminal.
func (p *progress) end() { p.wipe() }
