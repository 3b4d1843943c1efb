package state

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *Store, rec Record) *Handle {
	t.Helper()
	if rec.ID == "" {
		rec.ID = NewID()
	}
	h, err := s.Create(rec, nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestANameBelongsToOneContainerUntilItIsRemoved(t *testing.T) {
	s := open(t)
	h := create(t, s, Record{Name: "web"})
	if _, err := s.Create(Record{ID: NewID(), Name: "web"}, nil); !errors.Is(err, ErrNameInUse) {
		t.Fatalf("got %v", err)
	}
	if all, _ := s.List(); len(all) != 1 {
		t.Fatalf("the refused container left something: %d records", len(all))
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	create(t, s, Record{Name: "web"})
}

func TestANameOfAKilledProcessIsFree(t *testing.T) {
	s := open(t)
	if err := os.Symlink("gone", filepath.Join(s.names(), "web")); err != nil {
		t.Fatal(err)
	}
	create(t, s, Record{Name: "web"})
}

func TestFindTakesNamesIdsAndBeginningsOfIds(t *testing.T) {
	s := open(t)
	a := create(t, s, Record{ID: "abc1", Name: "one"})
	create(t, s, Record{ID: "abd2"})
	for _, ref := range []string{"one", "abc1", "abc"} {
		if got, err := s.Find(ref); err != nil || got.ID != a.ID {
			t.Errorf("%s: %v %v", ref, got, err)
		}
	}
	if _, err := s.Find("ab"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("got %v", err)
	}
	for _, ref := range []string{"x", "", "../abc1"} {
		if _, err := s.Find(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: got %v", ref, err)
		}
	}
}

func TestAContainerIsAbandonedWhenItsLockIsFreeAndItDidNotFinish(t *testing.T) {
	s := open(t)
	live := create(t, s, Record{Status: Running})
	defer live.Close()
	for _, rec := range []Record{{Status: Exited}, {Status: Created}} {
		create(t, s, rec).Close()
	}
	dead := create(t, s, Record{Status: Running})
	dead.Close()
	leaving := create(t, s, Record{Status: Exited, Remove: true})
	leaving.Close()
	got, err := s.Abandoned()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, h := range got {
		ids[h.ID] = true
	}
	if len(got) != 2 || !ids[dead.ID] || !ids[leaving.ID] {
		t.Fatalf("got %v", ids)
	}
}

// A process that is killed while it forks leaves its lock to the child for a moment.
func TestALockThatOutlivesItsOwnerForAMomentIsWaitedFor(t *testing.T) {
	s := open(t)
	h := create(t, s, Record{Status: Creating})
	h.Creator.Start++ // as if this process had gone
	if err := h.Save(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { h.Close() })
	got, err := s.Abandoned()
	if err != nil || len(got) != 1 {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestContainersAreMadeWhileOthersLookForAbandonedOnes(t *testing.T) {
	s := open(t)
	stop := make(chan struct{})
	var looking sync.WaitGroup
	for range 4 {
		looking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if all, err := s.Abandoned(); err != nil || len(all) > 0 {
					t.Errorf("found %d, %v", len(all), err)
					return
				}
			}
		})
	}
	for range 300 {
		h, err := s.Create(Record{ID: NewID(), Status: Running}, nil)
		if err != nil {
			t.Error(err)
			break
		}
		defer h.Close()
	}
	close(stop)
	looking.Wait()
}

func TestAHalfMadeContainerIsNotListedAndIsSwept(t *testing.T) {
	s := open(t)
	dir := s.Dir(newPrefix + "x")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Fatalf("listed: %v %v", all, err)
	}
	making, err := s.lockMaking(unix.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Abandoned(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatal("a directory in the making was removed")
	}
	making.Close()
	if _, err := s.Abandoned(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a husk was left")
	}
}

func TestAProcessIsKnownByItsStartTime(t *testing.T) {
	p, err := ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.Signal(0)); err != nil {
		t.Fatal(err)
	}
	p.Start++
	if err := p.Signal(unix.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("got %v", err)
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{"a": true, "web-1.x_y": true, "": false, "-a": false, "a/b": false, "..": false, "ä": false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
