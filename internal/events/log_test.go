package events

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func count(t *testing.T, root string) (n int, last string) {
	t.Helper()
	if err := Read(root, func(e Event) error { n++; last = e.Actor.ID; return nil }); err != nil {
		t.Fatal(err)
	}
	return n, last
}

func TestEventsOfManyWritersAreWhole(t *testing.T) {
	root := t.TempDir()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				if err := Append(root, Event{Type: "volume", Action: "create", Actor: Actor{ID: fmt.Sprint(w, i)}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n, _ := count(t, root); n != 200 {
		t.Errorf("%d events", n)
	}
}

func TestTheLogIsBounded(t *testing.T) {
	root := t.TempDir()
	long := strings.Repeat("x", 64<<10)
	for i := range 40 {
		if err := Append(root, Event{Actor: Actor{ID: fmt.Sprint(i), Attributes: map[string]string{"a": long}}}); err != nil {
			t.Fatal(err)
		}
	}
	var size int64
	entries, err := os.ReadDir(dir(root))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 2*limit+128<<10 {
		t.Errorf("%d bytes", size)
	}
	if n, last := count(t, root); n < 16 || last != "39" {
		t.Errorf("%d events, the last %s", n, last)
	}
}

func TestALineThatIsNoEventIsLeftOut(t *testing.T) {
	root := t.TempDir()
	if err := Append(root, Event{Actor: Actor{ID: "a"}}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir(root), logFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, `{"Type":"cont`)
	f.Close()
	if err := Append(root, Event{Actor: Actor{ID: "b"}}); err != nil {
		t.Fatal(err)
	}
	if n, last := count(t, root); n != 2 || last != "b" {
		t.Errorf("%d events, the last %s", n, last)
	}
}

func TestFollowSeesWhatComesAndTheLogsReplacement(t *testing.T) {
	root := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan string, 100)
	done := make(chan error)
	go func() {
		done <- Follow(ctx, root, func(e Event) error { seen <- e.Actor.ID; return nil })
	}()
	long := strings.Repeat("x", 100<<10)
	for i := range 30 {
		if err := Append(root, Event{Actor: Actor{ID: fmt.Sprint(i), Attributes: map[string]string{"a": long}}}); err != nil {
			t.Fatal(err)
		}
		if id := <-seen; id != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, id)
		}
	}
	// What came before the end is seen, too.
	if err := Append(root, Event{Actor: Actor{ID: "last"}}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if id := <-seen; id != "last" {
		t.Error(id)
	}
}
