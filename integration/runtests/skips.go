package main

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"strings"
)

func (r *runner) expected(p testPackage, kind string, s skipped) bool {
	for _, e := range r.skips {
		account, _ := path.Match(e.account, kind)
		pkg, _ := path.Match(e.pkg, p.rel)
		test, _ := path.Match(e.test, s.test)
		if account && pkg && test {
			return true
		}
	}
	return false
}

// skip is a line of expected-skips.txt; its patterns are path.Match's.
type skip struct{ account, pkg, test string }

func readSkips(name string) ([]skip, error) {
	rows, err := readRows(name, "ACCOUNT PACKAGE TEST")
	if err != nil {
		return nil, err
	}
	var skips []skip
	for _, r := range rows {
		for _, pattern := range r {
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", name, pattern, err)
			}
		}
		skips = append(skips, skip{r[0], r[1], r[2]})
	}
	return skips, nil
}

// readRows reads a file whose lines are three words and may end with a comment; form says what the words are.
func readRows(name, form string) (rows [][3]string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("%s:%d: want %s", name, n, form)
		}
		rows = append(rows, [3]string(fields))
	}
	return rows, sc.Err()
}

type skipped struct{ test, reason string }

type result struct {
	passed  int
	skipped []skipped
}

// parse counts the lines of the testing package's verbose form. A skip's reason is logged before its verdict, as
// "    file.go:1: reason", under the name of its test.
func parse(log []byte) (res result) {
	last := ""
	for line := range strings.Lines(string(log)) {
		text := strings.TrimSpace(line)
		switch name, ok := strings.CutPrefix(text, "--- "); {
		case ok && strings.HasPrefix(name, "PASS: "):
			res.passed++
		case ok && strings.HasPrefix(name, "SKIP: "):
			test, _, _ := strings.Cut(strings.TrimPrefix(name, "SKIP: "), " ")
			res.skipped = append(res.skipped, skipped{test, last})
		}
		if _, after, ok := strings.Cut(text, ".go:"); ok {
			if _, reason, ok := strings.Cut(after, ": "); ok {
				last = reason
			}
		}
	}
	return res
}
