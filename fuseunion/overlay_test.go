package fuseunion

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(&b[0]) }

func TestOverlayfsOnTopReadsCopiesUpAndRemoves(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	at := mountOverlay(t, mountTars(t, imageTars(t)...))
	all := slices.ContainsFunc(mappedIDs("/proc/self/uid_map"), func(r IDRange) bool { return r.First+r.Count > 1000 })

	if got := read(t, at+"/new"); got != "new\n" {
		t.Errorf("read: %q", got)
	}
	checkDir(t, at+"/etc")
	// Copy-up by a write keeps owner, mode, times and attributes.
	before := lstat(t, at+"/etc/xattr")
	f, err := os.OpenFile(at+"/etc/xattr", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("y"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, at+"/etc/xattr"); got != "xy" {
		t.Errorf("after the append: %q", got)
	}
	after := lstat(t, at+"/etc/xattr")
	if before.Mode != after.Mode || before.Uid != after.Uid {
		t.Errorf("copy-up changed %o %d to %o %d", before.Mode, before.Uid, after.Mode, after.Uid)
	}
	var buf [64]byte
	if n, err := unix.Lgetxattr(at+"/etc/xattr", "user.color", buf[:]); err != nil || string(buf[:n]) != "blue" {
		t.Errorf("attribute after copy-up: %q, %v", buf[:n], err)
	}
	if err := os.Remove(at + "/etc/passwd"); err != nil {
		t.Errorf("unlink: %v", err)
	}
	if _, err := os.Lstat(at + "/etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unlinked file: %v", err)
	}
	if err := os.RemoveAll(at + "/bin/sh"); err != nil {
		t.Errorf("remove a link: %v", err)
	}
	if all {
		if err := os.Chown(at+"/etc/shadow", 33, 33); err != nil {
			t.Errorf("chown: %v", err)
		}
		if st := lstat(t, at+"/etc/shadow"); st.Uid != 33 || st.Gid != 33 || st.Mode&0o777 != 0o640 {
			t.Errorf("after chown: %o %d:%d", st.Mode, st.Uid, st.Gid)
		}
	}
	if err := os.Chmod(at+"/etc/cron", 0o600); err != nil {
		t.Errorf("chmod: %v", err)
	}
	if err := os.Rename(at+"/big", at+"/etc/big"); err != nil {
		t.Errorf("rename: %v", err)
	}
	checkMmap(t, at+"/etc/big")
	if err := exec.Command(at + "/bin/true").Run(); err != nil {
		t.Errorf("execute from the overlay: %v", err)
	}
	if err := os.WriteFile(at+"/bin/made", []byte("made"), 0o755); err != nil {
		t.Errorf("create: %v", err)
	}
}
