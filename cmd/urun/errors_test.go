package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestMistypedWordsGetTheNearest(t *testing.T) {
	for line, want := range map[string]string{
		"psx":             "did you mean ps?",
		"runn":            "did you mean run?",
		"isnpect x":       "did you mean inspect?",
		"imags":           "did you mean images?",
		"volume lss":      "did you mean ls?",
		"ps --formt x":    "did you mean --format?",
		"xyzzy":           "see urun --help",
		"volume":          "one of create, ls",
		"ps extra":        "see urun ps --help",
		"run --nosuch x":  "see urun run --help",
		"volume rm --al ": "did you mean --all?",
	} {
		var out, errs bytes.Buffer
		status := run(strings.Fields(line), strings.NewReader(""), &out, &errs)
		lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
		if status != exitRuntime || len(lines) != 2 || !strings.HasPrefix(lines[0], "urun: ") || !strings.HasPrefix(lines[1], "hint: ") || !strings.Contains(lines[1], want) || out.Len() > 0 {
			t.Errorf("urun %s: status %d, %q, want a hint with %q", line, status, errs.String(), want)
		}
	}
}

func TestSeveralErrorsAreSeveralLines(t *testing.T) {
	var b bytes.Buffer
	printError(&b, errors.Join(errors.New("one"), errors.Join(errNotRunning, errors.New("two\nthree"))))
	want := "urun: one\nurun: container is not running\nhint: urun ps -a shows what became of it\nurun: two; three\n"
	if b.String() != want {
		t.Errorf("got %q", b.String())
	}
}
