package wire

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestFramesComeOutAsTheyWentIn(t *testing.T) {
	var stream bytes.Buffer
	c := New(&stream)
	want := Command{User: "alice", Args: []string{"sh", "-c", "exit 3"}, TTY: true, Window: Window{24, 80}}
	if err := c.SendValue(Start, want); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 100_000)
	if n, err := c.Writer(Stdin).Write([]byte(long)); n != len(long) || err != nil {
		t.Fatal(n, err)
	}
	if err := c.Send(EOF, nil); err != nil {
		t.Fatal(err)
	}
	kind, data, err := c.Recv()
	var got Command
	if err != nil || kind != Start || json.Unmarshal(data, &got) != nil || got.User != "alice" || got.Window.Cols != 80 {
		t.Fatalf("%q %s %v", kind, data, err)
	}
	var text strings.Builder
	for {
		kind, data, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if kind == EOF {
			break
		}
		text.Write(data)
	}
	if text.String() != long {
		t.Fatalf("%d of %d bytes arrived", text.Len(), len(long))
	}
}

func TestAFrameWithoutMeasureIsRefused(t *testing.T) {
	if _, _, err := New(bytes.NewBuffer([]byte{'o', 0xff, 0xff, 0xff, 0xff})).Recv(); err == nil {
		t.Fatal("4 GB were taken")
	}
	if err := New(&bytes.Buffer{}).Send(Stdout, make([]byte, maxFrame+1)); err == nil {
		t.Fatal("sent")
	}
}
