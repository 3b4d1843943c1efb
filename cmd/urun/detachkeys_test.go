package main

import (
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestDetachKeys(t *testing.T) {
	for _, c := range []struct{ keys, typed, passed string }{
		{"ctrl-p,ctrl-q", "ls\r\x10\x11after", "ls\r"},
		{"ctrl-p,ctrl-q", "a\x10b\x10\x10\x11", "a\x10b\x10"},
		{"ctrl-p,ctrl-q", "no keys", "no keys"},
		{"a,b,c", "abxabc", "abx"},
		{"ctrl-@", "x\x00y", "x"},
		{"q", "xyq", "xy"},
	} {
		keys, err := parseDetachKeys(c.keys)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range []io.Reader{newTyped(c.typed), iotest.OneByteReader(newTyped(c.typed))} {
			got, err := io.ReadAll(&keyReader{r: in, keys: keys})
			if string(got) != c.passed || (len(c.typed) > len(c.passed)) != errors.Is(err, errDetach) {
				t.Errorf("%s, typed %q: passed %q, %v", c.keys, c.typed, got, err)
			}
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-1", "ab", "a,,b"} {
		if _, err := parseDetachKeys(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func newTyped(s string) io.Reader { return &typed{s} }

type typed struct{ s string }

func (t *typed) Read(p []byte) (int, error) {
	if t.s == "" {
		return 0, io.EOF
	}
	n := copy(p, t.s)
	t.s = t.s[n:]
	return n, nil
}
