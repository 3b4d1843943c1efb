package holder

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestADirectoryThatOthersCanReachIsNotUsed(t *testing.T) {
	top := t.TempDir()
	open := filepath.Join(top, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if f, err := privateDir(open); err == nil {
		f.Close()
		t.Error("mode 0755 was accepted")
	}
	link := filepath.Join(top, "link")
	private := filepath.Join(top, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(private, link); err != nil {
		t.Fatal(err)
	}
	if f, err := privateDir(link); err == nil {
		f.Close()
		t.Error("a link was followed")
	}
	f, err := privateDir(private)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestTheFirstUsableBaseIsTaken(t *testing.T) {
	run := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", run)
	f, err := openBase("/nonexistent")
	if err != nil || f.Name() != filepath.Join(run, "urun") {
		t.Fatalf("got %v, %v", f, err)
	}
	f.Close()
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(run, "missing"))
	f, err = openBase("/nonexistent")
	if err != nil || strings.HasPrefix(f.Name(), run) {
		t.Fatalf("got %v, %v", f, err)
	}
	f.Close()
}

func TestSweepRemovesWhatAKilledHolderLeftAndNothingElse(t *testing.T) {
	run := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", run)
	base, err := openBase("/nonexistent")
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	for _, key := range []string{"dead", "alive"} {
		dir, err := openKey(base, key)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := os.WriteFile(filepath.Join(dir.Name(), doorName), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if key == "alive" {
			if ok, err := tryLock(dir); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
	}
	if err := Sweep("/nonexistent"); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(base.Name())
	if err != nil || len(left) != 1 || left[0].Name() != "alive" {
		t.Fatalf("left: %v, %v", left, err)
	}
}

func TestOnlyMountsThatDoNotPropagateCount(t *testing.T) {
	const shared = `22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
28 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
`
	digestOf := func(info string) string {
		var b strings.Builder
		if err := foreignMounts(&b, info); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	below := "90 28 0:50 / /mnt rw shared:40 - tmpfs tmpfs rw\n"
	if digestOf(shared) != digestOf(shared+below) {
		t.Error("a mount on a shared one counts")
	}
	private := strings.ReplaceAll(shared, " shared:1 ", " ")
	if digestOf(private) == digestOf(private+below) {
		t.Error("a mount on a private one does not count")
	}
	if err := foreignMounts(&strings.Builder{}, "nonsense\n"); err == nil {
		t.Error("nonsense is accepted")
	}
}
