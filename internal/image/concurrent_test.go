package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestMain lets this binary be a process that pulls, to be killed.
func TestMain(m *testing.M) {
	if root := os.Getenv("IMAGE_TEST_PULL_ROOT"); root != "" {
		os.Exit(pullProcess(root, os.Getenv("IMAGE_TEST_PULL_REF")))
	}
	if root := os.Getenv("IMAGE_TEST_REMOVE_ROOT"); root != "" {
		os.Exit(removeProcess(root, os.Getenv("IMAGE_TEST_REMOVE_REF")))
	}
	if root := os.Getenv("IMAGE_TEST_STRESS_ROOT"); root != "" {
		seed, err := strconv.ParseUint(os.Getenv("IMAGE_TEST_STRESS_SEED"), 10, 64)
		if err == nil {
			err = stressProcess(root, strings.Fields(os.Getenv("IMAGE_TEST_STRESS_REFS")), seed)
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func pullProcess(root, ref string) int {
	s, err := Open(Options{Root: root})
	if err == nil {
		_, err = s.Pull(context.Background(), ref, PullOptions{Platform: "linux/amd64"})
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("done")
	return 0
}

func startPull(t *testing.T, root, ref string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "IMAGE_TEST_PULL_ROOT="+root, "IMAGE_TEST_PULL_REF="+ref)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// TestTwoPullsShareTheWork: each layer crosses the wire once, whoever pulls.
func TestTwoPullsShareTheWork(t *testing.T) {
	reg := newRegistry(t)
	root := filepath.Join(t.TempDir(), "store")
	m := build(t, nil, gzipLayer(t, "a", noise(1<<20, 5)), gzipLayer(t, "b", noise(1<<20, 6)), gzipLayer(t, "c", noise(1<<20, 7)))
	ref := reg.push(t, "test:1", m)
	slow(reg, m, 300*time.Millisecond)
	var wg sync.WaitGroup
	waited := make([]int, 4)
	for i := range waited {
		wg.Go(func() {
			s, err := Open(Options{Root: root})
			if err != nil {
				t.Error(err)
				return
			}
			img, err := s.Pull(context.Background(), ref, PullOptions{Progress: func(e Event) {
				if e.Kind == EventWait {
					waited[i]++
				}
			}, Platform: "linux/amd64"})
			if err != nil || img.ID != m.id {
				t.Errorf("pull %d: %v, %v", i, img, err)
			}
		})
	}
	wg.Wait()
	for _, d := range m.layers {
		if n := reg.count("GET", "blobs/"+d.String()); n != 1 {
			t.Errorf("layer %s was fetched %d times", d, n)
		}
	}
	if waited[0]+waited[1]+waited[2]+waited[3] == 0 {
		t.Error("nobody waited")
	}
}

// slow makes layers arrive late.
func slow(reg *testRegistry, m *testImage, d time.Duration) {
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, m.id.String()) {
			time.Sleep(d)
		}
		return false
	})
}

// TestKilledPullIsSweptAndResumed kills a pulling process at many moments. The store is usable after each, layers that
// were finished are not fetched again, and nothing of the rest stays.
func TestKilledPullIsSweptAndResumed(t *testing.T) {
	reg := newRegistry(t)
	m := build(t, nil, gzipLayer(t, "a", noise(1<<20, 8)), gzipLayer(t, "b", noise(2<<20, 9)), gzipLayer(t, "c", noise(3<<20, 10)))
	ref := reg.push(t, "test:1", m)
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		body := m.blobs[digest.Digest(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])]
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		for len(body) > 0 { // about 60 ms a megabyte
			n := min(len(body), 64<<10)
			if _, err := w.Write(body[:n]); err != nil {
				return true
			}
			body = body[n:]
			time.Sleep(4 * time.Millisecond)
		}
		return true
	})
	kills := 25
	if testing.Short() {
		kills = 5
	}
	for i := range kills {
		root := filepath.Join(t.TempDir(), "store")
		cmd := startPull(t, root, ref)
		time.Sleep(time.Duration(10+i*300/kills) * time.Millisecond)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed, or just ready

		s, err := Open(Options{Root: root})
		must(t, err)
		if left := tmpFiles(t, s); len(left) > 0 {
			t.Errorf("kill %d: left in tmp: %v", i, left)
		}
		finished := 0
		for _, d := range m.diffIDs {
			if _, err := os.Stat(s.layerData(d)); err == nil {
				finished++
			}
		}
		before := reg.count("GET", "/blobs/")
		img := pull(t, s, ref)
		if fetched := reg.count("GET", "/blobs/") - before; fetched != 1+len(m.layers)-finished {
			t.Errorf("kill %d: %d layers were finished, and %d blobs fetched", i, finished, fetched)
		}
		if got := content(t, img, "c"); got != noise(3<<20, 10) {
			t.Errorf("kill %d: content differs", i)
		}
	}
}

// TestSweepLeavesTheLivingAlone: another process opening the store does not take away what a pull works on.
func TestSweepLeavesTheLivingAlone(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	m := build(t, nil, gzipLayer(t, "a", noise(1<<20, 11)))
	ref := reg.push(t, "test:1", m)
	slow(reg, m, 500*time.Millisecond)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "IMAGE_TEST_PULL_ROOT="+s.Root(), "IMAGE_TEST_PULL_REF="+ref)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	deadline := time.Now().Add(10 * time.Second)
	for len(tmpFiles(t, s)) == 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	for range 20 {
		_, err := Open(Options{Root: s.Root()})
		must(t, err)
		if _, err := s.Prune(context.Background(), true, nil); err != nil {
			t.Error(err)
		}
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "done\n" {
		t.Errorf("pull says %q, %v", line, err)
	}
	must(t, cmd.Wait())
	if _, err := s.Resolve(ref); err != nil {
		t.Error(err)
	}
}

// TestPruneBesidePulls: images come and go at the same time, and every pull gives a whole image.
func TestPruneBesidePulls(t *testing.T) {
	reg := newRegistry(t)
	root := filepath.Join(t.TempDir(), "store")
	base := gzipLayer(t, "base", noise(100000, 12))
	var refs []string
	for i := range 3 {
		refs = append(refs, reg.push(t, fmt.Sprintf("test%d:1", i), build(t, nil, base, gzipLayer(t, "top", fmt.Sprint(i)))))
	}
	stop := make(chan struct{})
	var pruner, pullers sync.WaitGroup
	pruner.Go(func() {
		s, err := Open(Options{Root: root})
		for err == nil {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_, err = s.Prune(context.Background(), true, nil)
			}
		}
		t.Errorf("prune: %v", err)
	})
	for _, ref := range refs {
		pullers.Go(func() {
			for range 30 {
				s, err := Open(Options{Root: root})
				if err != nil {
					t.Error(err)
					return
				}
				img, err := s.Pull(context.Background(), ref, PullOptions{Platform: "linux/amd64"})
				if err != nil {
					t.Errorf("pull %s: %v", ref, err)
					return
				}
				release, err := s.Hold(img)
				if errors.Is(err, ErrNotFound) {
					continue // pruned between pull and hold
				}
				if err != nil {
					t.Errorf("hold %s: %v", ref, err)
					return
				}
				if _, err := s.load(img.ID); err != nil {
					t.Errorf("held image %s: %v", ref, err)
				}
				release()
			}
		})
	}
	pullers.Wait()
	close(stop)
	pruner.Wait()
	if s, err := Open(Options{Root: root}); err != nil {
		t.Error(err)
	} else if _, err := s.Prune(context.Background(), true, nil); err != nil || len(files(t, s)) > 0 {
		t.Errorf("left: %v (%v)", files(t, s), err)
	}
}
