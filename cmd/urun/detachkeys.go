package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// parseDetachKeys parses docker's form: single characters, or ctrl- with one of
// a to z, @, [, \, ], ^ or _, separated by commas. An empty string has none.
func parseDetachKeys(s string) ([]byte, error) {
	var keys []byte
	if s == "" {
		return nil, nil
	}
	for _, word := range strings.Split(s, ",") {
		name, ctrl := strings.CutPrefix(word, "ctrl-")
		if len(name) != 1 {
			return nil, &hintError{fmt.Errorf("--detach-keys %s: %q is not a key", s, word), "write single characters or ctrl-CHARACTER, separated by commas: ctrl-p,ctrl-q"}
		}
		c := name[0]
		if ctrl {
			upper := c
			if c >= 'a' && c <= 'z' {
				upper = c - 'a' + 'A'
			}
			if upper < '@' || upper > '_' {
				return nil, fmt.Errorf("--detach-keys %s: there is no ctrl-%s", s, name)
			}
			c = upper - '@'
		}
		keys = append(keys, c)
	}
	return keys, nil
}

// errDetach says that the detach keys were typed.
var errDetach = errors.New("detached")

// keyReader reads what is typed until it meets the detach keys. What looks like
// their beginning is held back until it is clear.
type keyReader struct {
	r       io.Reader
	keys    []byte
	matched int
	buf     [4096]byte
	in      []byte // read, not looked at
	err     error  // for when in is empty
}

// Read implements io.Reader; it returns errDetach at the keys.
func (k *keyReader) Read(p []byte) (int, error) {
	for {
		if len(k.in) == 0 {
			if k.err != nil {
				return 0, k.err
			}
			n, err := k.r.Read(k.buf[:])
			k.in, k.err = k.buf[:n], err
		}
		n := 0
		for len(k.in) > 0 && n+k.matched < len(p) {
			c := k.in[0]
			k.in = k.in[1:]
			if c == k.keys[k.matched] {
				if k.matched++; k.matched == len(k.keys) {
					k.err, k.in = errDetach, nil
					break
				}
				continue
			}
			n += copy(p[n:], k.keys[:k.matched])
			k.matched = 0
			if c == k.keys[0] {
				k.matched = 1
				if len(k.keys) == 1 {
					k.err, k.in = errDetach, nil
					break
				}
				continue
			}
			p[n] = c
			n++
		}
		if n > 0 {
			return n, nil
		}
	}
}
