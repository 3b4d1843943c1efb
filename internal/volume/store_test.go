package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func removeAll(dirs []string) error {
	for _, d := range dirs {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

func nobody() (map[string][]string, error) { return nil, nil }

func TestAVolumeIsMadeOnceAndKeepsItsLabels(t *testing.T) {
	st := Open(t.TempDir())
	made, err := st.Make(Volume{Name: "data", Labels: map[string]string{"a": "b"}})
	if err != nil || !made {
		t.Fatal(made, err)
	}
	if made, err = st.Make(Volume{Name: "data"}); err != nil || made {
		t.Fatal(made, err)
	}
	v, err := st.Find("data")
	if err != nil || v.Labels["a"] != "b" || v.Created.IsZero() || v.Path != st.Path("data") {
		t.Fatalf("%+v, %v", v, err)
	}
	if info, err := os.Stat(filepath.Dir(v.Path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("others can reach it: %v, %v", info.Mode(), err)
	}
}

func TestAVolumeWhoseMakerWasKilledIsThere(t *testing.T) {
	st := Open(t.TempDir())
	if err := os.MkdirAll(st.dir("half"), 0o700); err != nil {
		t.Fatal(err)
	}
	if v, err := st.Find("half"); err != nil || v.Created.IsZero() {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err := st.Make(Volume{Name: "half"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(st.Path("half")); err != nil {
		t.Error(err)
	}
}

func TestNamesThatLeadElsewhereAreNone(t *testing.T) {
	st := Open(t.TempDir())
	for _, name := range []string{"", "x", "..", "../data", "a/b", ".gone-x", "a b"} {
		if CheckName(name) == nil {
			t.Errorf("%q was taken", name)
		}
		if _, err := st.Find(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestARemovalThatBrokeOffIsFinished(t *testing.T) {
	st := Open(t.TempDir())
	if _, err := st.Make(Volume{Name: "data"}); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("killed")
	all := func(*Volume) bool { return true }
	if _, err := st.Remove(nobody, all, func([]string) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if vs, err := st.List(); err != nil || len(vs) != 0 {
		t.Fatal(vs, err)
	}
	if _, err := st.Remove(nobody, all, removeAll); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(st.root, "volumes")); len(left) != 0 {
		t.Error(left)
	}
}

// Containers are made and ended while somebody prunes: none may find its volume gone.
func TestNoVolumeIsRemovedFromUnderItsContainer(t *testing.T) {
	st := Open(t.TempDir())
	var mu sync.Mutex
	users := map[string][]string{}
	used := func() (map[string][]string, error) {
		mu.Lock()
		defer mu.Unlock()
		now := map[string][]string{}
		for v, who := range users {
			now[v] = who
		}
		return now, nil
	}
	stop := make(chan struct{})
	pruning := make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				pruning <- nil
				return
			default:
				if _, err := st.Remove(used, func(*Volume) bool { return true }, removeAll); err != nil {
					pruning <- err
					return
				}
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprintf("vol%d", i)
		wg.Go(func() {
			for range 50 {
				release, err := st.Hold()
				if err != nil {
					t.Error(err)
					return
				}
				_, err = st.Make(Volume{Name: name})
				mu.Lock()
				users[name] = []string{"c"}
				mu.Unlock()
				release()
				if err == nil {
					_, err = os.Stat(st.Path(name))
				}
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				delete(users, name)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(stop)
	if err := <-pruning; err != nil {
		t.Error(err)
	}
}
