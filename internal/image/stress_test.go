package image

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/urun-dev/urun/fuseunion"
)

// stressProcess is one of many processes that use a store at once: it pulls, removes, prunes, verifies, and opens images
// and reads all of them, as a container would.
func stressProcess(root string, refs []string, seed uint64) error {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 25 {
		s, err := Open(Options{Root: root})
		if err != nil {
			return err
		}
		ref := refs[r.IntN(len(refs))]
		switch k := r.IntN(10); {
		case k < 3:
			_, err = s.Pull(ctx, ref, PullOptions{Platform: "linux/amd64"})
		case k < 6:
			err = stressRun(ctx, s, ref)
		case k < 8:
			_, err = s.Remove(ctx, ref, r.IntN(2) == 0)
		case k == 8:
			_, err = s.Prune(ctx, r.IntN(2) == 0, nil)
		case k == 9:
			err = s.Verify(ctx, nil, false, func(v Verified) error {
				if len(v.Damage) > 0 {
					return fmt.Errorf("damage: %+v", v)
				}
				return nil
			})
		}
		if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInUse) {
			return err
		}
	}
	return nil
}

// stressRun does to the store what a run does.
func stressRun(ctx context.Context, s *Store, ref string) error {
	img, err := s.Pull(ctx, ref, PullOptions{Policy: PolicyMissing, Platform: "linux/amd64"})
	if err != nil {
		return err
	}
	release, err := s.Hold(img)
	if err != nil {
		return err
	}
	defer release()
	tree, _, err := s.OpenTree(ctx, img)
	if err != nil {
		return fmt.Errorf("a held image: %w", err)
	}
	defer tree.Close()
	n := 0
	err = tree.Walk(func(name string, st fuseunion.Stat) error {
		n++
		if st.Mode>>12 != 8 {
			return nil
		}
		b, err := tree.ReadFile(name, 1<<20)
		if err == nil && len(b) != int(st.Size) {
			err = fmt.Errorf("%s: %d bytes", name, len(b))
		}
		return err
	})
	if err == nil && n < 3 {
		err = fmt.Errorf("an image of %d files", n)
	}
	return err
}

// TestStoreUnderManyProcesses has processes use one store at once, kills some at random moments, and then looks: images
// that are there are whole, and when what nothing uses is removed nothing else is left.
func TestStoreUnderManyProcesses(t *testing.T) {
	rounds, at := 2, 4
	if n, err := strconv.Atoi(os.Getenv("URUN_IMAGE_STRESS")); err == nil {
		rounds, at = n, 8
	}
	reg := newRegistry(t)
	base, middle := gzipLayer(t, "base", noise(100_000, 12)), gzipLayer(t, "d/middle", noise(50_000, 13))
	var refs []string
	for i := range 5 {
		layers := []testLayer{base, gzipLayer(t, "top", fmt.Sprint(i))}
		if i%2 == 0 {
			layers = slices.Insert(layers, 1, middle)
		}
		refs = append(refs, reg.push(t, fmt.Sprintf("test%d:1", i), build(t, nil, layers...)))
	}
	root := filepath.Join(t.TempDir(), "store")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range rounds {
		var wg sync.WaitGroup
		for i := range at {
			wg.Go(func() { stressOne(t, root, refs, seed+uint64(round*at+i)) })
		}
		wg.Wait()
		s, err := Open(Options{Root: root})
		must(t, err)
		checkStore(t, s)
	}
}

// stressOne runs one process, which every other time is killed.
func stressOne(t *testing.T, root string, refs []string, seed uint64) {
	exe, err := os.Executable()
	if err != nil {
		t.Error(err)
		return
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "IMAGE_TEST_STRESS_ROOT="+root, "IMAGE_TEST_STRESS_REFS="+strings.Join(refs, " "), "IMAGE_TEST_STRESS_SEED="+strconv.FormatUint(seed, 10))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	if r := rand.New(rand.NewPCG(seed, 1)); r.IntN(2) == 0 {
		kill := time.AfterFunc(time.Duration(r.IntN(1500))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
	}
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() >= 0 {
		t.Errorf("seed %d: %v: %s", seed, err, out.String())
	}
}

// checkStore looks at a store that nobody uses.
func checkStore(t *testing.T, s *Store) {
	t.Helper()
	ctx := context.Background()
	must(t, s.Verify(ctx, nil, false, func(v Verified) error {
		if len(v.Damage) > 0 {
			t.Errorf("damage: %+v", v)
		}
		return nil
	}))
	if _, err := s.Prune(ctx, false, nil); err != nil {
		t.Error(err)
	}
	layers, trees, err := s.live()
	must(t, err)
	for dir, live := range map[string]map[string]bool{"layers/sha256": layers, "trees": trees} {
		entries, err := os.ReadDir(s.path(dir))
		must(t, err)
		for _, e := range entries {
			if !live[e.Name()] {
				t.Errorf("%s/%s is of no image", dir, e.Name())
			}
			delete(live, e.Name())
		}
		if len(live) > 0 {
			t.Errorf("%s lacks %v", dir, live)
		}
	}
	names, err := s.names()
	must(t, err)
	ids, err := s.ids()
	must(t, err)
	for id, refs := range names {
		if !slices.Contains(ids, id) {
			t.Errorf("%v name no image", refs)
		}
	}
	if left := tmpFiles(t, s); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}
