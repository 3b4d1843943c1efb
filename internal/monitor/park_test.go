package monitor

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/rootfs"
	"github.com/urun-dev/urun/userns"
)

// insideDir is set in a test binary that is root of a user namespace.
const insideDir = "URUN_PARK_DIR"

// A parked layer is the user's own, so that rm -rf works, and comes back as it was.
func TestAParkedLayerIsTheUsersAndComesBackAsItWas(t *testing.T) {
	if dir := os.Getenv(insideDir); dir != "" {
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil { // the id maps are written
			t.Fatal(err)
		}
		parkInside(t, dir)
		return
	}
	m, err := userns.Plan(userns.Request{}, userns.Current())
	if err != nil || m.Single() || os.Geteuid() == 0 {
		t.Skipf("missing: subordinate ids of an ordinary user: %v %s", err, m.Note)
	}
	dir := t.TempDir()
	var out bytes.Buffer
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideDir+"="+dir)
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := userns.Start(cmd, m, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "--- PASS: "+t.Name()) {
		t.Fatalf("inside: %v\n%s", err, out.String())
	}
	// The layer was left parked: all of it is the user's and can be removed by him.
	found := 0
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		found++
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if int(st.Uid) != os.Getuid() || int(st.Gid) != os.Getgid() {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
		return nil
	})
	if err != nil || found < 7 {
		t.Errorf("walked %d files: %v", found, err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "upper")); err != nil {
		t.Error(err)
	}
}

func parkInside(t *testing.T, dir string) {
	upper := filepath.Join(dir, "upper")
	inner := filepath.Join(upper, "closed", "inner")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(upper, "odd\nname \xff")
	for _, file := range []string{filepath.Join(upper, "suid"), filepath.Join(inner, "f"), odd} {
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", filepath.Join(upper, "link")); err != nil {
		t.Fatal(err)
	}
	for file, id := range map[string]int{"suid": 33, "link": 7, "odd\nname \xff": 65534, "closed/inner": 8, "closed": 9} {
		if err := os.Lchown(filepath.Join(upper, file), id, id+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Chmod(filepath.Join(upper, "suid"), 0o4755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(filepath.Join(upper, "closed"), 0o111); err != nil {
		t.Fatal(err)
	}
	before := list(t, upper)
	journal := filepath.Join(dir, ownersFile)
	if err := rootfs.Park(upper, journal, 0, 0); err != nil {
		t.Fatal(err)
	}
	parked := list(t, upper)
	if parked == before {
		t.Fatal("nothing was changed")
	}
	// A second time finds nothing to do and forgets nothing.
	if err := rootfs.Park(upper, journal, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := rootfs.Unpark(upper, journal); err != nil {
		t.Fatal(err)
	}
	if after := list(t, upper); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if err := rootfs.Park(upper, journal, 0, 0); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("find", dir, "-printf", "%m %U:%G %P\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestAJournalThatLeadsOutIsRefused(t *testing.T) {
	dir := t.TempDir()
	journal := filepath.Join(dir, ownersFile)
	if err := os.WriteFile(journal, []byte("0 0 100644 - ../x\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := rootfs.Unpark(dir, journal); err == nil || !strings.Contains(err.Error(), "leads out") {
		t.Fatalf("got %v", err)
	}
}
