package jsonlog

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func open(t *testing.T, opt Options) (*Writer, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "log")
	w, err := Open(name, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w, name
}

func read(t *testing.T, name string, q Query) []string {
	t.Helper()
	var all []string
	if err := Read(name, q, func(l Line) error { all = append(all, l.Log); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAStreamIsCutIntoLines(t *testing.T) {
	w, name := open(t, Options{})
	s := w.Stream("stdout")
	long := strings.Repeat("x", maxLine+5)
	for _, part := range []string{"one\ntw", "o\n", long + "\n", "end"} {
		s.Write([]byte(part))
	}
	s.Flush()
	want := []string{"one\n", "two\n", long[:maxLine], "xxxxx\n", "end"}
	if got := read(t, name, Query{Tail: -1}); !slices.Equal(got, want) {
		t.Errorf("got %d lines: %.60q", len(got), got)
	}
}

func TestTailCountsLinesOverRotatedFiles(t *testing.T) {
	w, name := open(t, Options{MaxSize: 300, MaxFiles: 4})
	for i := range 10 {
		w.Write(Line{Log: fmt.Sprintf("line %d\n", i), Stream: "stdout", Time: time.Unix(int64(i), 0)})
	}
	if _, err := os.Stat(name + ".1"); err != nil {
		t.Fatal(err)
	}
	for n := range 7 {
		got := read(t, name, Query{Tail: n})
		if len(got) != n || n > 0 && (got[n-1] != "line 9\n" || got[0] != fmt.Sprintf("line %d\n", 10-n)) {
			t.Errorf("tail %d: %q", n, got)
		}
	}
}

func TestSinceAndUntilBoundTheLines(t *testing.T) {
	w, name := open(t, Options{})
	for i := range 10 {
		w.Write(Line{Log: fmt.Sprint(i), Time: time.Unix(int64(i), 0)})
	}
	got := read(t, name, Query{Tail: -1, Since: time.Unix(3, 0), Until: time.Unix(5, 0)})
	if !slices.Equal(got, []string{"3", "4", "5"}) {
		t.Errorf("got %q", got)
	}
}

func TestRotationKeepsTheNumberOfFiles(t *testing.T) {
	for files := 1; files < 4; files++ {
		w, name := open(t, Options{MaxSize: 200, MaxFiles: files})
		for i := range 50 {
			w.Write(Line{Log: fmt.Sprint(i), Time: time.Now()})
		}
		if err := w.Err(); err != nil {
			t.Fatal(err)
		}
		found, err := filepath.Glob(name + "*")
		if err != nil || len(found) != files {
			t.Errorf("max-file %d: %v, %v", files, found, err)
		}
		for _, f := range found {
			if info, err := os.Stat(f); err != nil || info.Size() > 200 {
				t.Errorf("%s: %v %v", f, info, err)
			}
		}
		if got := read(t, name, Query{Tail: 1}); !slices.Equal(got, []string{"49"}) {
			t.Errorf("max-file %d: last is %q", files, got)
		}
	}
}

func TestAFollowerSeesEveryLineThroughRotations(t *testing.T) {
	w, name := open(t, Options{MaxSize: 2000, MaxFiles: 500})
	var ended atomic.Bool
	const lines = 2000
	go func() {
		for i := range lines {
			w.Write(Line{Log: fmt.Sprint(i), Time: time.Now()})
			if i%100 == 0 {
				time.Sleep(time.Millisecond) // lets the reader come near
			}
		}
		ended.Store(true)
	}()
	got := read(t, name, Query{Tail: -1, Follow: true, Ended: func() (bool, error) { return ended.Load(), nil }})
	if len(got) != lines {
		t.Fatalf("got %d lines", len(got))
	}
	for i, l := range got {
		if l != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
}

func TestATornLineIsCutOffAtTheNextOpening(t *testing.T) {
	w, name := open(t, Options{})
	w.Write(Line{Log: "whole", Time: time.Now()})
	w.Close()
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"log":"half`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got := read(t, name, Query{Tail: -1}); !slices.Equal(got, []string{"whole"}) {
		t.Errorf("before: %q", got)
	}
	if w, err = Open(name, Options{}); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.Write(Line{Log: "next", Time: time.Now()})
	if got := read(t, name, Query{Tail: -1}); !slices.Equal(got, []string{"whole", "next"}) {
		t.Errorf("after: %q", got)
	}
}

func TestWithoutALogThereIsAnError(t *testing.T) {
	err := Read(filepath.Join(t.TempDir(), "log"), Query{}, func(Line) error { return nil })
	if !os.IsNotExist(err) && (err == nil || !strings.Contains(err.Error(), "no such file")) {
		t.Errorf("got %v", err)
	}
}
