package emulation

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

func TestAnotherWorkerLeadsWhenAnAnswerTakesLong(t *testing.T) {
	l := newListener(-1)
	ended := make(chan struct{})
	go func() { l.watch(); close(ended) }()
	<-l.lead
	// Quick answers leave the lead where it is, however many there are.
	for range 1000 {
		if turn := l.begin(); !l.finish(turn) {
			// The machine was busy for so long: another one leads.
			<-l.lead
		}
	}
	for round := range 3 {
		turn := l.begin()
		select {
		case <-l.lead:
		case <-time.After(time.Minute):
			t.Fatalf("round %d: nobody else is let lead", round)
		}
		if l.finish(turn) {
			t.Fatalf("round %d: who took long leads still, beside another one", round)
		}
		time.Sleep(3 * patience) // watch goes to sleep, and has to be woken
	}
	close(l.busy)
	<-ended
}

func TestOwnersAreKeptWhileTheyCannotHaveChanged(t *testing.T) {
	var o owners
	now := time.Unix(1000, 0)
	whose := fuseunion.Owner{UID: 33, GID: 44}
	old, recent := unix.Timespec{Sec: 990}, unix.Timespec{Sec: 999, Nsec: 500}
	o.put(1, old, whose, now)
	o.put(2, recent, whose, now)
	if got, ok := o.get(1, old); !ok || got != whose {
		t.Errorf("an owner of long ago: %+v, %v", got, ok)
	}
	if _, ok := o.get(1, recent); ok {
		t.Error("the owner of a file that has changed is taken for true")
	}
	if _, ok := o.get(2, recent); ok {
		t.Error("a file that may change within its st_ctime is kept")
	}
	o.forget(1)
	if _, ok := o.get(1, old); ok {
		t.Error("a forgotten owner is still there")
	}
	for ino := range uint64(maxOwners + 1) {
		o.put(ino, old, whose, now)
	}
	if len(o.byID) > maxOwners {
		t.Errorf("%d owners are kept", len(o.byID))
	}
}
