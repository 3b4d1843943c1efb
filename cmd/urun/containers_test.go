package main

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
)

// startingContainer is a container between "urun start" and its monitor's first word. This process holds its lock.
func startingContainer(t *testing.T) (*state.Store, *state.Handle) {
	t.Helper()
	st, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := st.Create(state.Record{ID: state.NewID(), Name: "c", Status: state.Created}, nil)
	if err == nil {
		err = h.Begin()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return st, h
}

func TestASignalToAContainerThatNobodyCouldPassOnIsNotTakenForDelivered(t *testing.T) {
	for status, want := range map[state.Status]error{
		state.Creating:   handoff.ErrNobody,
		state.Starting:   handoff.ErrNobody,
		state.Restarting: handoff.ErrNobody,
		state.Created:    errNotRunning,
		state.Exited:     errNotRunning,
		state.Dead:       errNotRunning,
	} {
		st, h := startingContainer(t)
		h.Status = status
		if err := signalOnce(st, &h.Record, monitor.Signal{Number: int(unix.SIGKILL)}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", status, err, want)
		}
	}
}

// A kill that came before the container's monitor was there was lost, and who had
// sent it waited for the end of the container: rm -f, stop and restart hung.
func TestAKillReachesAContainerThatIsJustBeingStarted(t *testing.T) {
	st, h := startingContainer(t)
	starting := h.Record
	killed := make(chan error, 1)
	go func() { killed <- killContainer(st, &starting) }()
	select {
	case err := <-killed:
		t.Fatalf("it did not wait for the monitor: %v", err)
	case <-time.After(50 * time.Millisecond): // long enough to find nobody there
	}

	outside, err := handoff.UserNamespace()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(h.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	door, err := handoff.Listen(dir, "control", outside)
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	asked := make(chan monitor.Signal, 1)
	go door.Serve(func(c *handoff.Conn) {
		defer c.Close()
		var sig monitor.Signal
		if m, err := c.Expect(monitor.KindSignal); err == nil && m.Decode(&sig) == nil {
			asked <- sig
			_ = c.Send(monitor.KindDone, nil)
		}
	})
	select {
	case sig := <-asked:
		if unix.Signal(sig.Number) != unix.SIGKILL || !sig.Stop {
			t.Errorf("got %+v", sig)
		}
	case err := <-killed:
		t.Fatalf("it ended without a word to the monitor: %v", err)
	case <-time.After(hearTime):
		t.Fatal("no signal came")
	}
	h.Status = state.Exited
	if err := h.Save(); err != nil {
		t.Fatal(err)
	}
	if err := <-killed; err != nil {
		t.Error(err)
	}
}

func TestASignalToAContainerThatIsGoneSaysThatItDoesNotRun(t *testing.T) {
	st, h := startingContainer(t)
	gone := h.Record
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := signalContainer(st, &gone, monitor.Signal{Number: int(unix.SIGTERM)}); !errors.Is(err, errNotRunning) {
		t.Errorf("got %v", err)
	}
	if _, err := monitor.Dial(st.Dir(gone.ID)); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("dial: got %v", err)
	}
	if _, err := st.Spec(gone.ID); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("spec: got %v", err)
	}
}
