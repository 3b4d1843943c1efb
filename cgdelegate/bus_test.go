package cgdelegate

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// listen makes a socket that treats each connection with serve.
func listen(t *testing.T, serve func(net.Conn)) address {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return address{way: UserManager, path: path, bus: true}
}

func TestABusThatNeverAnswersIsGivenUp(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	silent := listen(t, func(c net.Conn) { <-hold; c.Close() })
	greets := listen(t, func(c net.Conn) {
		// Authentication works, then nothing.
		buf := make([]byte, 4096)
		for _, reply := range []string{"REJECTED EXTERNAL\r\n", "OK 1234\r\n", "", "", ""} {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := c.Write([]byte(reply)); err != nil {
				return
			}
		}
		<-hold
		c.Close()
	})
	for name, a := range map[string]address{"silent": silent, "greets": greets} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			start := time.Now()
			m, err := connectManager(ctx, []address{a})
			if err == nil {
				err = m.startScope(ctx, "urun-x.scope", Options{PIDs: []int{os.Getpid()}})
			}
			var u *UnavailableError
			if !errors.As(err, &u) || u.Cause != Timeout || u.Hint() == "" {
				t.Fatal(err)
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Error("it took", d)
			}
			t.Log(err)
		})
	}
}

func TestABusThatHangsUpIsPassedOver(t *testing.T) {
	rude := listen(t, func(c net.Conn) { c.Close() })
	absent := address{way: UserManager, path: filepath.Join(t.TempDir(), "none"), bus: true}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := connectManager(ctx, []address{absent, rude})
	var u *UnavailableError
	if !errors.As(err, &u) || (u.Cause != NoManager && u.Cause != NoBus) || u.Hint() == "" {
		t.Fatal(err)
	}
	t.Log(err)
}

func TestCreateRefusesNonsense(t *testing.T) {
	for name, o := range map[string]Options{
		"no name":     {PIDs: []int{1}},
		"a path":      {Name: "../x", PIDs: []int{1}},
		"a space":     {Name: "a b", PIDs: []int{1}},
		"no process":  {Name: "urun-x"},
		"bad limits":  {Name: "urun-x", PIDs: []int{1}, Limits: Limits{Memory: -7}},
		"hidden name": {Name: ".x", PIDs: []int{1}},
	} {
		if _, err := Create(context.Background(), o); err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
