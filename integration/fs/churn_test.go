package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// What comes and goes leaves nothing behind: neither memory nor descriptors of the
// server, nor files in its work directory.
func TestChurn(t *testing.T) {
	if !inNamespaces(t, 40*time.Minute) {
		return
	}
	im := newImage(t, tmpfs(t), posixLayer(t))
	base := tmpfs(t)
	m := unionAt(t, base, served{Tree: im.tree, Data: im.data, Options: fuseunion.UnionOptions{NoXattrs: true, LazySize: 1}})
	rounds, files := 8, 1000
	if n := operations(0); n > 0 {
		rounds = max(rounds, n/files)
	}
	var first, last usage
	for round := range rounds {
		churn(t, m.at, files, round)
		if round == rounds/2 {
			first = usageOf(t, m.server.Process.Pid)
		}
	}
	last = usageOf(t, m.server.Process.Pid)
	t.Logf("after %d files: %v, after %d: %v", rounds/2*files, first, rounds*files, last)
	if last.fds > first.fds+20 {
		t.Errorf("descriptors grow from %d to %d", first.fds, last.fds)
	}
	// A leak of 100 bytes a file would be seen in the long form.
	if limit := first.kb + 8<<10 + rounds/2*files/20; last.kb > limit {
		t.Errorf("memory grows from %d to %d KiB", first.kb, last.kb)
	}
	m.unmount(t)
	for _, dir := range []string{"tmp", "index", "lazy"} {
		if left, err := os.ReadDir(filepath.Join(base, "work", dir)); err != nil || len(left) > 0 {
			t.Errorf("%s keeps %d files, %v", dir, len(left), err)
		}
	}
	if fi, err := os.Stat(filepath.Join(base, "work", "ledger")); err != nil || fi.Size() > 32<<20 {
		t.Errorf("ledger: %v, %v", fi.Size(), err)
	}
}

func churn(t *testing.T, at string, files, round int) {
	t.Helper()
	dir := filepath.Join(at, "dir", "churn")
	ok(t, os.Mkdir(dir, 0o750))
	for i := range files {
		name := filepath.Join(dir, fmt.Sprintf("f%d-%d", round, i))
		ok(t, os.WriteFile(name, []byte(name), 0o640))
		switch i % 4 {
		case 0:
			ok(t, os.Chmod(name, 0o604))
		case 1:
			ok(t, os.Rename(name, name+"x"))
			name += "x"
		case 2:
			ok(t, os.Link(name, name+"l"))
			ok(t, os.Remove(name))
			name += "l"
		}
		if i%2 == 0 {
			ok(t, os.Remove(name))
		}
	}
	ok(t, os.RemoveAll(dir))
	// A file of the image, changed and copied over again and again.
	ok(t, os.WriteFile(filepath.Join(at, "dir", "a"), []byte(fmt.Sprint(round)), 0o644))
	ok(t, os.Rename(filepath.Join(at, "dir", "a"), filepath.Join(at, "dir", "b")))
	ok(t, os.Rename(filepath.Join(at, "dir", "b"), filepath.Join(at, "dir", "a")))
}

type usage struct{ fds, kb int }

func usageOf(t *testing.T, pid int) (u usage) {
	t.Helper()
	// The kernel tells of removed files in its own time.
	unix.Sync()
	dir := "/proc/" + strconv.Itoa(pid)
	fds, err := os.ReadDir(dir + "/fd")
	ok(t, err)
	u.fds = len(fds)
	b, err := os.ReadFile(dir + "/status")
	ok(t, err)
	for line := range strings.Lines(string(b)) {
		if v, found := strings.CutPrefix(line, "RssAnon:"); found {
			u.kb, err = strconv.Atoi(strings.Fields(v)[0])
			ok(t, err)
		}
	}
	return u
}
