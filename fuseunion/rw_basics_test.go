package fuseunion

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// treeListing describes all that can be seen of a tree, a line a file.
func treeListing(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%q ino=%d %o %d:%d n=%d mtime=%d.%09d", strings.TrimPrefix(path, root), st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d %.40q", st.Size, b)
		case unix.S_IFLNK:
			s, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + s
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev=%x", st.Rdev)
		}
		lines = append(lines, line+" "+xattrListing(t, path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrListing(t testing.TB, path string) string {
	var buf, val [4096]byte
	n, err := unix.Llistxattr(path, buf[:])
	if err != nil {
		t.Fatalf("listxattr %s: %v", path, err)
	}
	var all []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		m, err := unix.Lgetxattr(path, name, val[:])
		if err != nil {
			t.Fatalf("getxattr %s %s: %v", path, name, err)
		}
		all = append(all, fmt.Sprintf("%s=%q", name, val[:m]))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func diffListings(t testing.TB, want, got []string) {
	t.Helper()
	have := map[string]bool{}
	for _, l := range got {
		have[l] = true
	}
	was := map[string]bool{}
	for _, l := range want {
		if was[l] = true; !have[l] {
			t.Errorf("- %s", l)
		}
	}
	for _, l := range got {
		if !was[l] {
			t.Errorf("+ %s", l)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%v", err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func tryUnion(t testing.TB, at string) {
	in := func(name string) string { return filepath.Join(at, name) }
	checkDir(t, in("etc"))
	must(t, os.WriteFile(in("etc/made"), []byte("made"), 0o640))
	ino := lstat(t, in("etc/passwd")).Ino
	f, err := os.OpenFile(in("etc/passwd"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("more\n")
	must(t, err)
	must(t, f.Close())
	if got := read(t, in("etc/passwd")); !strings.HasSuffix(got, "sh\nmore\n") {
		t.Errorf("after an append: %q", got)
	}
	if st := lstat(t, in("etc/passwd")); st.Ino != ino {
		t.Errorf("inode number changed from %d to %d", ino, st.Ino)
	}
	must(t, os.Mkdir(in("dir"), 0o1777))
	must(t, os.Chmod(in("dir"), 0o1777|os.ModeSticky))
	must(t, os.Symlink("made", in("etc/link")))
	must(t, os.Link(in("etc/made"), in("dir/hard")))
	if st := lstat(t, in("dir/hard")); st.Nlink != 2 {
		t.Errorf("nlink %d", st.Nlink)
	}
	// Hard links of the lower file system.
	must(t, os.WriteFile(in("etc/hard"), []byte("written"), 0))
	if got := read(t, in("etc/hard2")); got != "written" {
		t.Errorf("the other link says %q", got)
	}
	must(t, os.Remove(in("etc/hard2")))
	if st := lstat(t, in("etc/hard3")); st.Nlink != 2 {
		t.Errorf("nlink %d after an unlink", st.Nlink)
	}
	must(t, os.Link(in("etc/hard"), in("dir/hard4")))
	must(t, os.Rename(in("etc/hard3"), in("dir/hard5")))
	if st := lstat(t, in("etc/hard")); st.Nlink != 3 || st.Ino != lstat(t, in("dir/hard5")).Ino {
		t.Errorf("nlink %d after link and rename", st.Nlink)
	}
	// Directories.
	must(t, os.Rename(in("etc"), in("dir/etc")))
	_, err = os.Lstat(in("etc"))
	wantErr(t, err, fs.ErrNotExist)
	if got := read(t, in("dir/etc/shadow")); got != "secret" {
		t.Errorf("in a renamed directory: %q", got)
	}
	must(t, os.Mkdir(in("etc"), 0o755))
	ents, err := os.ReadDir(in("etc"))
	must(t, err)
	if len(ents) != 0 {
		t.Errorf("new directory over a removed one has %v", ents)
	}
	must(t, os.Chmod(in("dir/etc/cron"), 0o600))
	must(t, os.Rename(in("big"), in("etc/big")))
	checkMmap(t, in("etc/big"))
	must(t, os.Remove(in("bin/sh")))
	must(t, os.Symlink("x", in("bin/sh")))
	wantErr(t, os.Remove(in("dir")), unix.ENOTEMPTY)
	must(t, os.RemoveAll(in("bin")))
	_, err = os.Lstat(in("bin"))
	wantErr(t, err, fs.ErrNotExist)
	must(t, unix.Mkfifo(in("fifo"), 0o606))
	must(t, unix.Setxattr(in("new"), "user.a", []byte("b"), 0))
	must(t, unix.Setxattr(in("new"), "user.overlay.opaque", []byte("n"), 0))
	wantErr(t, unix.Setxattr(in("new"), "user.a", []byte("c"), unix.XATTR_CREATE), unix.EEXIST)
	must(t, unix.Setxattr(in("new"), "user.urun.meta", []byte("c"), unix.XATTR_CREATE))
	for _, dir := range []string{"", "dir/etc", "dir", "."} {
		checkDir(t, in(dir))
	}
	// Unlinked while open.
	f, err = os.OpenFile(in("dir/etc/xattr"), os.O_RDWR, 0)
	must(t, err)
	must(t, os.Remove(in("dir/etc/xattr")))
	_, err = f.WriteAt([]byte("zz"), 1)
	must(t, err)
	must(t, f.Sync())
	b := make([]byte, 10)
	if n, _ := f.ReadAt(b, 0); string(b[:n]) != "xzz" {
		t.Errorf("unlinked file reads %q", b[:n])
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != 3 {
		t.Errorf("unlinked file: %v %v", fi, err)
	}
	must(t, f.Close())
	fd, err := unix.Open(in("dir"), unix.O_TMPFILE|unix.O_RDWR, 0o600)
	must(t, err)
	if err == nil {
		_, err = unix.Write(fd, []byte("tmp"))
		must(t, err)
		must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, in("dir/tmp"), unix.AT_SYMLINK_FOLLOW))
		must(t, unix.Close(fd))
		if got := read(t, in("dir/tmp")); got != "tmp" {
			t.Errorf("O_TMPFILE: %q", got)
		}
	}
	must(t, unix.Renameat2(unix.AT_FDCWD, in("dir/tmp"), unix.AT_FDCWD, in("new"), unix.RENAME_EXCHANGE))
	if got := read(t, in("new")); got != "tmp" {
		t.Errorf("exchanged: %q", got)
	}
	wantErr(t, unix.Renameat2(unix.AT_FDCWD, in("dir/tmp"), unix.AT_FDCWD, in("new"), unix.RENAME_NOREPLACE), unix.EEXIST)
}
