package handoff

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

type body struct{ Text string }

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestMessagesOfAnySizeArriveWhole(t *testing.T) {
	a, b := pair(t)
	for _, size := range []int{0, 1, packetLimit - 20, packetLimit + 1, 5 << 20} {
		want := strings.Repeat("x", size)
		if err := a.Send("text", body{want}); err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		m, err := b.Expect("text")
		if err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		var got body
		if err := m.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Text != want || len(m.Files) != 0 {
			t.Errorf("size %d: got %d bytes and %d files", size, len(got.Text), len(m.Files))
		}
	}
}

func TestFilesArriveInOrderAlsoBesideALargeBody(t *testing.T) {
	a, b := pair(t)
	r1, w1, _ := os.Pipe()
	r2, w2, _ := os.Pipe()
	defer r1.Close()
	defer r2.Close()
	for _, size := range []int{3, 2 * packetLimit} {
		if err := a.Send("files", body{strings.Repeat("y", size)}, w1, w2); err != nil {
			t.Fatal(err)
		}
		m, err := b.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Files) != 2 {
			t.Fatalf("got %d files", len(m.Files))
		}
		for i, r := range []*os.File{r1, r2} {
			if _, err := m.Files[i].WriteString("z"); err != nil {
				t.Fatal(err)
			}
			if n, err := r.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Fatalf("file %d: %d %v", i, n, err)
			}
		}
		m.Close()
	}
	w1.Close()
	w2.Close()
}

func TestRecvReturnsEOFWhenThePeerIsGone(t *testing.T) {
	a, b := pair(t)
	if err := a.Send("last", nil); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, err := b.Expect("last"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v", err)
	}
}

func TestExpectNamesTheWrongKind(t *testing.T) {
	a, b := pair(t)
	if err := a.Send("one", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Expect("two"); err == nil || !strings.Contains(err.Error(), `got "one", want "two"`) {
		t.Fatalf("got %v", err)
	}
}

// The last words of a peer that did not read all that it was sent arrive, and then its end.
func TestLastWordsAreHeard(t *testing.T) {
	a, b := pair(t)
	if err := errors.Join(b.Send("unread", nil), a.Send("failed", body{"why"}), a.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Expect("failed"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}
