package fs

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var posixChecks = []posixCheck{
	{"O_APPEND writes at the end, whoever has written", checkAppend, ""},
	{"O_DIRECT reads and writes", checkDirect, ""},
	{"fallocate extends, keeps the size, and punches holes", checkFallocate, ""},
	{"SEEK_HOLE finds a hole", checkSeekHole, "union"},
	{"SEEK_DATA leaves out nothing that was written", checkSeekData, ""},
	{"copy_file_range copies", checkCopyRange, ""},
	{"flock excludes", checkFlock, ""},
	{"POSIX locks exclude", checkLocks, ""},
	{"a shared mapping and write see each other", checkMmap, ""},
	{"a mapping made before the first write sees it", checkMmapBefore, "kernel overlay"},
	{"programs run, and are busy while they are written", checkExec, ""},
	{"set-id bits go when others write, and with chown", checkSetID, ""},
	{"in a sticky directory only owners remove", checkSticky, ""},
	{"default ACLs are inherited, and chmod sets the mask", checkACL, ""},
	{"user attributes are created, replaced, listed, removed", checkXattrs, ""},
	{"file capabilities go when the file is written", checkCapability, ""},
	{"hard links share inode and count", checkLink, ""},
	{"hard links of the image stay one file", checkLowerLinks, "kernel overlay"},
	{"a directory of the image is renamed", checkRenameDir, "kernel overlay"},
	{"rename replaces empty directories only", checkRenameOver, ""},
	{"RENAME_EXCHANGE and RENAME_NOREPLACE", checkRename2, ""},
	{"RENAME_WHITEOUT leaves a device 0/0", checkWhiteout, "kernel overlay"},
	{"a removed file lives while it is open", checkUnlinked, ""},
	{"O_TMPFILE has no name until it is linked", checkTmpfile, ""},
	{"a removed directory is empty and takes nothing", checkRemovedDir, ""},
	{"names of 255 bytes, and such that are not UTF-8", checkNames, ""},
	{"inode numbers stay when a file is written to", checkInodes, ""},
	{"inode numbers are those of readdir", checkReaddirInodes, "kernel overlay"},
	{"a directory's link count counts its subdirectories", checkDirLinks, "kernel overlay"},
	{"FIFOs and sockets connect", checkSpecial, ""},
	{"devices can not be made", checkDevice, ""},
	{"times are set and kept", checkTimes, ""},
	{"open flags", checkOpenFlags, ""},
	{"truncate extends with zeros", checkTruncate, ""},
	{"a set-group-id directory gives its group", checkSetGID, ""},
	{"permissions hold for others", checkPermission, ""},
	{"thousands of files are open at once, and removed", checkManyOpen, ""},
	{"entries that are removed while they are listed", checkReaddirRemove, ""},
	{"a directory is read on from where it was", checkSeekdir, ""},
	{"statfs and fsync", checkSync, ""},
	{"all is on one device", checkDevices, "kernel overlay"},
	{"offsets of gigabytes", checkLarge, ""},
	{"many at once", checkConcurrent, ""},
}

func checkAppend(c *checker) string {
	if s := c.write("append", "one"); s != "" {
		return s
	}
	a, b := c.open("append", unix.O_WRONLY|unix.O_APPEND), c.open("append", unix.O_WRONLY|unix.O_APPEND)
	defer unix.Close(a)
	defer unix.Close(b)
	_, e1 := unix.Write(a, []byte("two"))
	_, e2 := unix.Write(b, []byte("three"))
	_, e3 := unix.Write(a, []byte("four"))
	return all(failed(e1, e2, e3), c.says("append", "onetwothreefour"))
}

func checkDirect(c *checker) string {
	fd, err := unix.Open(c.in("big"), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) && c.plainTmpfs() {
		return "" // tmpfs before Linux 6.6
	}
	if err != nil {
		return failed(err)
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	copy(b, strings.Repeat("Z", 4096))
	_, e1 := unix.Pwrite(fd, b[:4096], 4096)
	n, e2 := unix.Pread(fd, b, 0)
	return all(failed(e1, e2), equal("read", n, 8192), equal("content", string(b[:4])+string(b[4096:4100])+string(b[8188:]), "0123ZZZZZZZZ"))
}

func (c *checker) plainTmpfs() bool {
	var st unix.Statfs_t
	return unix.Statfs(c.dir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

func checkFallocate(c *checker) string {
	if s := c.write("alloc", strings.Repeat("x", 10000)); s != "" {
		return s
	}
	fd := c.open("alloc", unix.O_RDWR)
	defer unix.Close(fd)
	e1 := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096)
	b := make([]byte, 3)
	_, e2 := unix.Pread(fd, b, 4095)
	e3 := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 50000)
	kept := c.stat("alloc").Size
	e4 := unix.Fallocate(fd, 0, 0, 50000)
	return all(failed(e1, e2, e3, e4), equal("hole", string(b), "x\x00\x00"), equal("size kept", kept, 10000), equal("size", c.stat("alloc").Size, 50000))
}

func checkSeekHole(c *checker) string {
	if s := c.write("holes", "x"); s != "" {
		return s
	}
	fd := c.open("holes", unix.O_RDWR)
	defer unix.Close(fd)
	e1 := unix.Ftruncate(fd, 1<<20)
	e2 := unix.Fsync(fd)
	at, e3 := unix.Seek(fd, 0, unix.SEEK_HOLE)
	return all(failed(e1, e2, e3), equal("hole before the end", at < 1<<20, true))
}

// checkSeekData copies a sparse file as cp does: what was written by write(2), and through a mapping that nobody has
// synced, is in the parts that SEEK_DATA and SEEK_HOLE give.
func checkSeekData(c *checker) string {
	const size = 1 << 20
	if s := c.write("sparse", ""); s != "" {
		return s
	}
	fd := c.open("sparse", unix.O_RDWR)
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, size); err != nil {
		return err.Error()
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err.Error()
	}
	defer unix.Munmap(b)
	want := make([]byte, size)
	for i, at := range []int{size / 4, size / 2, 3 * size / 4, size - 1} {
		want[at] = byte(i + 1)
		if b[at] = byte(i + 1); i%2 == 0 {
			b[at] = 0
			if _, err := unix.Pwrite(fd, want[at:at+1], int64(at)); err != nil {
				return err.Error()
			}
		}
	}
	got := make([]byte, size)
	for at := int64(0); ; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO { // none is left
			break
		}
		hole, err2 := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil || err2 != nil || data < at || hole <= data || hole > size {
			return fmt.Sprintf("from %d on: data at %d, %v, a hole at %d, %v", at, data, err, hole, err2)
		}
		if _, err := unix.Pread(fd, got[data:hole], data); err != nil {
			return err.Error()
		}
		at = hole
	}
	_, e1 := unix.Seek(fd, size, unix.SEEK_DATA)
	_, e2 := unix.Seek(fd, size, unix.SEEK_HOLE)
	return all(equal("all that was written", bytes.Equal(got, want), true), equal("data behind the end", e1, error(unix.ENXIO)), equal("hole behind the end", e2, error(unix.ENXIO)))
}

func checkCopyRange(c *checker) string {
	src, dst := c.open("big", unix.O_RDONLY), c.open("copied", unix.O_RDWR|unix.O_CREAT)
	defer unix.Close(src)
	defer unix.Close(dst)
	from, to, left := int64(16), int64(0), 100000
	for left > 0 {
		n, err := unix.CopyFileRange(src, &from, dst, &to, left, 0)
		if err != nil || n == 0 {
			return fmt.Sprintf("copied %d: %v", n, err)
		}
		left -= n
	}
	b := make([]byte, 100000)
	n, err := unix.Pread(dst, b, 0)
	return all(failed(err), equal("bytes", n, 100000), equal("content", string(b[99984:]), "0123456789abcdef"))
}

func checkFlock(c *checker) string {
	a, b := c.open("file", unix.O_RDONLY), c.open("file", unix.O_RDONLY)
	defer unix.Close(a)
	defer unix.Close(b)
	return all(failed(unix.Flock(a, unix.LOCK_EX)), wants(unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), unix.EAGAIN),
		failed(unix.Flock(a, unix.LOCK_UN), unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB)))
}

func checkLocks(c *checker) string {
	if s := c.write("locks", "0123456789"); s != "" {
		return s
	}
	a, b := c.open("locks", unix.O_RDWR), c.open("locks", unix.O_RDWR)
	defer unix.Close(a)
	defer unix.Close(b)
	lock := func(fd int, typ int16, start int64) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: 5})
	}
	return all(failed(lock(a, unix.F_WRLCK, 0)), wants(lock(b, unix.F_WRLCK, 3), unix.EAGAIN),
		failed(lock(b, unix.F_WRLCK, 5), lock(a, unix.F_UNLCK, 0), lock(b, unix.F_WRLCK, 0)))
}

func checkMmap(c *checker) string {
	if s := c.write("mapped", strings.Repeat(".", 8192)); s != "" {
		return s
	}
	fd := c.open("mapped", unix.O_RDWR)
	defer unix.Close(fd)
	b, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	_, e1 := unix.Pwrite(fd, []byte("w"), 5000)
	b[10] = 'm'
	p := make([]byte, 1)
	_, e2 := unix.Pread(fd, p, 10)
	return all(failed(e1, e2, unix.Msync(b, unix.MS_SYNC)), equal("mapping", b[5000], 'w'), equal("read", p[0], 'm'))
}

func checkMmapBefore(c *checker) string {
	fd := c.open("dir/sub/b", unix.O_RDONLY)
	defer unix.Close(fd)
	b, err := unix.Mmap(fd, 0, 1, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	before := b[0]
	return all(equal("before", before, 'b'), c.write("dir/sub/b", "B"), equal("after", b[0], 'B'))
}

func checkExec(c *checker) string {
	if err := exec.Command(c.in("bin/true")).Run(); err != nil {
		return failed(err)
	}
	b, err := os.ReadFile(c.in("bin/true"))
	if err != nil {
		return failed(err)
	}
	fd := c.open("bin/made", unix.O_WRONLY|unix.O_CREAT)
	_, e1 := unix.Write(fd, b)
	e2 := unix.Fchmod(fd, 0o755)
	busy := exec.Command(c.in("bin/made")).Run()
	return all(failed(e1, e2), wants(busy, unix.ETXTBSY), failed(unix.Close(fd), exec.Command(c.in("bin/made")).Run()))
}

func checkSetID(c *checker) string {
	e1 := unix.Chmod(c.in("suid"), 0o6777)
	if c.many {
		err := c.as(33, func() error {
			fd, err := unix.Open(c.in("suid"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			_, err = unix.Write(fd, []byte("x"))
			return errors.Join(err, unix.Close(fd))
		})
		if s := all(failed(e1, err), equal("mode after write", c.stat("suid").Mode&0o7777, 0o777)); s != "" {
			return s
		}
	}
	e2 := unix.Chmod(c.in("suid"), 0o6755)
	set := c.stat("suid").Mode & 0o7777
	e3 := unix.Chown(c.in("suid"), 0, 0)
	return all(failed(e1, e2, e3), equal("mode", set, 0o6755), equal("mode after chown", c.stat("suid").Mode&0o7777, 0o755))
}

func checkSticky(c *checker) string {
	if !c.many {
		return ""
	}
	e1, e2 := unix.Mkdir(c.in("sticky"), 0o777), unix.Chmod(c.in("sticky"), 0o1777)
	e3 := c.as(33, func() error { return os.WriteFile(c.in("sticky/f"), nil, 0o666) })
	e4 := c.as(1000, func() error { return unix.Unlink(c.in("sticky/f")) })
	e5 := c.as(1000, func() error { return unix.Rename(c.in("sticky/f"), c.in("sticky/g")) })
	owner := c.stat("sticky/f").Uid
	return all(failed(e1, e2, e3), equal("owner", owner, 33), wants(e4, unix.EPERM), wants(e5, unix.EPERM),
		failed(c.as(33, func() error { return unix.Unlink(c.in("sticky/f")) })))
}

// acl encodes entries of tag, permissions and id.
func acl(entries ...[3]uint32) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = append(b, byte(e[0]), byte(e[0]>>8), byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return b
}

const noID = 1<<32 - 1

func checkACL(c *checker) string {
	if s := failed(unix.Mkdir(c.in("acl"), 0o755)); s != "" {
		return s
	}
	def := acl([3]uint32{1, 7, noID}, [3]uint32{2, 6, 0}, [3]uint32{4, 5, noID}, [3]uint32{0x10, 7, noID}, [3]uint32{0x20, 0, noID})
	if s := failed(unix.Setxattr(c.in("acl"), "system.posix_acl_default", def, 0), os.WriteFile(c.in("acl/f"), nil, 0o664), unix.Mkdir(c.in("acl/d"), 0o777)); s != "" {
		return s
	}
	get := func(name, attr string) string {
		b := make([]byte, 200)
		n, err := unix.Getxattr(c.in(name), attr, b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	inherited := acl([3]uint32{1, 6, noID}, [3]uint32{2, 6, 0}, [3]uint32{4, 5, noID}, [3]uint32{0x10, 6, noID}, [3]uint32{0x20, 0, noID})
	s := all(equal("inherited", get("acl/f", "system.posix_acl_access"), string(inherited)), equal("mode", c.stat("acl/f").Mode&0o777, 0o660),
		equal("default of a directory", get("acl/d", "system.posix_acl_default"), string(def)))
	if s != "" {
		return s
	}
	e := unix.Chmod(c.in("acl/f"), 0o640)
	masked := acl([3]uint32{1, 6, noID}, [3]uint32{2, 6, 0}, [3]uint32{4, 5, noID}, [3]uint32{0x10, 4, noID}, [3]uint32{0x20, 0, noID})
	return all(failed(e), equal("after chmod", get("acl/f", "system.posix_acl_access"), string(masked)),
		failed(unix.Removexattr(c.in("acl/f"), "system.posix_acl_access")), equal("removed", get("acl/f", "system.posix_acl_access"), unix.ENODATA.Error()))
}

func checkXattrs(c *checker) string {
	f := c.in("file")
	e1 := unix.Setxattr(f, "user.a", []byte("1"), unix.XATTR_CREATE)
	e2 := unix.Setxattr(f, "user.a", []byte("2"), unix.XATTR_CREATE)
	e3 := unix.Setxattr(f, "user.b", []byte("2"), unix.XATTR_REPLACE)
	b := make([]byte, 100)
	n, e4 := unix.Listxattr(f, b)
	names := string(b[:max(n, 0)])
	_, e5 := unix.Getxattr(f, "user.color", b[:1])
	e6 := os.Symlink("file", c.in("xlink"))
	e7 := unix.Lsetxattr(c.in("xlink"), "user.a", []byte("1"), 0)
	e8 := unix.Setxattr(c.in("dir"), "user.d", []byte{}, 0)
	return all(failed(e1, e4, e6, e8), wants(e2, unix.EEXIST), wants(e3, unix.ENODATA), wants(e5, unix.ERANGE), wants(e7, unix.EPERM),
		equal("names", strings.Contains(names, "user.a\x00") && strings.Contains(names, "user.color\x00"), true),
		failed(unix.Removexattr(f, "user.a")), wants(unix.Removexattr(f, "user.a"), unix.ENODATA))
}

func checkCapability(c *checker) string {
	if s := c.write("capable", "x"); s != "" {
		return s
	}
	// VFS_CAP_REVISION_2, permitted: CAP_NET_BIND_SERVICE.
	value := append([]byte{1, 0, 0, 2, 0, 4, 0, 0}, make([]byte, 12)...)
	e1 := unix.Setxattr(c.in("capable"), "security.capability", value, 0)
	b := make([]byte, 100)
	_, e2 := unix.Getxattr(c.in("capable"), "security.capability", b)
	s := c.write("capable", "y")
	_, e3 := unix.Getxattr(c.in("capable"), "security.capability", b)
	return all(failed(e1, e2), s, wants(e3, unix.ENODATA))
}

func checkLink(c *checker) string {
	s := c.write("one", "1")
	e := os.Link(c.in("one"), c.in("two"))
	a, b := c.stat("one"), c.stat("two")
	return all(s, failed(e), equal("inode", a.Ino, b.Ino), equal("links", a.Nlink, 2), failed(os.Remove(c.in("one"))),
		equal("links", c.stat("two").Nlink, 1), wants(os.Link(c.in("dir"), c.in("three")), unix.EPERM))
}

func checkLowerLinks(c *checker) string {
	s := c.write("hard1", "changed")
	a, b := c.stat("hard1"), c.stat("hard2")
	return all(s, c.says("hard2", "changed"), equal("inode", a.Ino, b.Ino), equal("links", b.Nlink, 2),
		failed(os.Remove(c.in("hard1"))), equal("links", c.stat("hard2").Nlink, 1))
}

func checkRenameDir(c *checker) string {
	e1 := unix.Rename(c.in("moved"), c.in("moved2"))
	return all(failed(e1), c.says("moved2/x", "x"), failed(unix.Mkdir(c.in("moved"), 0o755)), wants(unix.Stat(c.in("moved/x"), new(unix.Stat_t)), unix.ENOENT))
}

func checkRenameOver(c *checker) string {
	return all(failed(unix.Mkdir(c.in("r1"), 0o755), unix.Mkdir(c.in("r1/in"), 0o755), unix.Mkdir(c.in("r2"), 0o755)),
		wants(unix.Rename(c.in("r2"), c.in("r1")), unix.ENOTEMPTY), wants(unix.Rename(c.in("r1"), c.in("r1/in/x")), unix.EINVAL),
		wants(unix.Rename(c.in("r2"), c.in("file")), unix.ENOTDIR), wants(unix.Rename(c.in("file"), c.in("r2")), unix.EISDIR),
		failed(unix.Rename(c.in("r1"), c.in("r2"))), failed(unix.Rename(c.in("r2"), c.in("dir/empty"))))
}

func checkRename2(c *checker) string {
	s := all(c.write("x1", "1"), c.write("x2", "2"))
	e1 := unix.Renameat2(unix.AT_FDCWD, c.in("x1"), unix.AT_FDCWD, c.in("x2"), unix.RENAME_NOREPLACE)
	e2 := unix.Renameat2(unix.AT_FDCWD, c.in("x1"), unix.AT_FDCWD, c.in("x2"), unix.RENAME_EXCHANGE)
	return all(s, wants(e1, unix.EEXIST), failed(e2), c.says("x1", "2"), c.says("x2", "1"))
}

func checkWhiteout(c *checker) string {
	s := c.write("w1", "1")
	e := unix.Renameat2(unix.AT_FDCWD, c.in("w1"), unix.AT_FDCWD, c.in("w2"), unix.RENAME_WHITEOUT)
	if e != nil {
		return failed(e)
	}
	st := c.stat("w1")
	return all(s, c.says("w2", "1"), equal("type", st.Mode&unix.S_IFMT, unix.S_IFCHR), equal("device", st.Rdev, 0), failed(os.Remove(c.in("w1"))))
}

func checkUnlinked(c *checker) string {
	if s := c.write("gone", "text"); s != "" {
		return s
	}
	fd := c.open("gone", unix.O_RDWR)
	defer unix.Close(fd)
	e1 := os.Remove(c.in("gone"))
	_, e2 := unix.Pwrite(fd, []byte("T"), 0)
	b := make([]byte, 10)
	n, e3 := unix.Pread(fd, b, 0)
	var st unix.Stat_t
	e4 := unix.Fstat(fd, &st)
	return all(failed(e1, e2, e3, e4, unix.Ftruncate(fd, 2), unix.Fsync(fd), unix.Fchmod(fd, 0o600)), equal("content", string(b[:n]), "Text"), equal("links", st.Nlink, 0))
}

func checkTmpfile(c *checker) string {
	fd, err := unix.Open(c.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(fd)
	_, e1 := unix.Write(fd, []byte("tmp"))
	var st unix.Stat_t
	e2 := unix.Fstat(fd, &st)
	e3 := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, c.in("named"), unix.AT_SYMLINK_FOLLOW)
	return all(failed(e1, e2, e3), equal("links", st.Nlink, 0), c.says("named", "tmp"), equal("links", c.stat("named").Nlink, 1))
}

func checkRemovedDir(c *checker) string {
	if s := failed(unix.Mkdir(c.in("rd"), 0o755)); s != "" {
		return s
	}
	fd := c.open("rd", unix.O_RDONLY|unix.O_DIRECTORY)
	defer unix.Close(fd)
	e1 := unix.Rmdir(c.in("rd"))
	_, e2 := unix.Openat(fd, "x", unix.O_CREAT|unix.O_WRONLY, 0o644)
	names, e3 := readNames(fd)
	if errors.Is(e3, unix.ENOENT) {
		e3 = nil // as most file systems have it
	}
	return all(failed(e1, e3), wants(e2, unix.ENOENT), equal("entries", len(names), 0))
}

func checkNames(c *checker) string {
	long := strings.Repeat("n", 255)
	return all(c.says(long, "long"), c.write(long, "changed"), c.says(long, "changed"), c.says("bad\xff\xfe", "x"), c.write("\x80\x01é", "n"),
		failed(os.Rename(c.in("\x80\x01é"), c.in(strings.Repeat("é", 127)+"x"))), c.says(strings.Repeat("é", 127)+"x", "n"),
		wants(os.WriteFile(c.in(long+"n"), nil, 0o644), unix.ENAMETOOLONG))
}

func checkInodes(c *checker) string {
	before := c.stat("dir/a").Ino
	return all(c.write("dir/a", "copied up"), equal("inode after copy-up", c.stat("dir/a").Ino, before))
}

func checkReaddirInodes(c *checker) string {
	fd := c.open("dir", unix.O_RDONLY|unix.O_DIRECTORY)
	defer unix.Close(fd)
	inos := map[string]uint64{}
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return failed(err)
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			name, _, _ := strings.Cut(string(b[19:int(b[16])|int(b[17])<<8]), "\x00")
			inos[name] = le64(b)
			b = b[int(b[16])|int(b[17])<<8:]
		}
	}
	return all(equal("of a file", inos["a"], c.stat("dir/a").Ino), equal("of a directory", inos["sub"], c.stat("dir/sub").Ino))
}

func checkDirLinks(c *checker) string {
	before := c.stat("dir").Nlink
	e := unix.Mkdir(c.in("dir/more"), 0o755)
	return all(failed(e), equal("before", before, 4), equal("after", c.stat("dir").Nlink, 5), failed(unix.Rmdir(c.in("dir/more"))), equal("at last", c.stat("dir").Nlink, 4))
}

func checkSpecial(c *checker) string {
	if s := failed(unix.Mkfifo(c.in("fifo"), 0o600)); s != "" {
		return s
	}
	r := c.open("fifo", unix.O_RDONLY|unix.O_NONBLOCK)
	w := c.open("fifo", unix.O_WRONLY)
	defer unix.Close(r)
	defer unix.Close(w)
	_, e1 := unix.Write(w, []byte("hi"))
	b := make([]byte, 2)
	_, e2 := unix.Read(r, b)
	l, err := net.Listen("unix", c.in("sock"))
	if err != nil {
		return failed(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", c.in("sock"))
	if err != nil {
		return failed(err)
	}
	return all(failed(e1, e2, conn.Close()), equal("fifo", string(b), "hi"), equal("socket", c.stat("sock").Mode&unix.S_IFMT, unix.S_IFSOCK))
}

func checkDevice(c *checker) string {
	return wants(unix.Mknod(c.in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.EPERM)
}

func checkTimes(c *checker) string {
	before := c.stat("dir")
	f, e1 := os.OpenFile(c.in("dir/sub/t"), os.O_CREATE|os.O_WRONLY, 0o644)
	if e1 != nil {
		return failed(e1)
	}
	_, e2 := f.WriteString("x")
	at := time.Unix(1234567890, 987654321)
	e3 := f.Close()
	e4 := os.Chtimes(c.in("dir/sub/t"), at, at)
	set := c.stat("dir/sub/t")
	kept := c.stat("dir")
	e5 := os.Chmod(c.in("big"), 0o640)
	big := c.stat("big")
	return all(failed(e2, e3, e4, e5), equal("mtime", set.Mtim, unix.Timespec{Sec: 1234567890, Nsec: 987654321}), equal("atime", set.Atim.Sec, 1234567890),
		equal("mtime of the directory above a copy-up", kept.Mtim, before.Mtim), equal("ctime after chmod is new", big.Ctim.Sec > 1.6e9, true))
}

func checkOpenFlags(c *checker) string {
	s := failed(os.Symlink("file", c.in("olink")))
	open := func(name string, flags int) error {
		fd, err := unix.Open(c.in(name), flags|unix.O_CLOEXEC, 0o644)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}
	return all(s, wants(open("file", unix.O_CREAT|unix.O_EXCL), unix.EEXIST), wants(open("olink", unix.O_NOFOLLOW), unix.ELOOP),
		wants(open("file", unix.O_DIRECTORY), unix.ENOTDIR), wants(open("dir", unix.O_WRONLY), unix.EISDIR), wants(open("file/x", 0), unix.ENOTDIR),
		wants(open("none", 0), unix.ENOENT), failed(open("file", unix.O_RDWR|unix.O_TRUNC)), equal("size", c.stat("file").Size, 0))
}

func checkTruncate(c *checker) string {
	if s := c.write("trunc", "abc"); s != "" {
		return s
	}
	e1, e2 := os.Truncate(c.in("trunc"), 6), os.Truncate(c.in("trunc"), 2)
	e3 := os.Truncate(c.in("trunc"), 4)
	return all(failed(e1, e2, e3), c.says("trunc", "ab\x00\x00"), wants(os.Truncate(c.in("dir"), 0), unix.EISDIR))
}

func checkSetGID(c *checker) string {
	gid := 0
	if c.many {
		gid = 33
	}
	e1, e2, e3 := unix.Mkdir(c.in("sg"), 0o755), unix.Chown(c.in("sg"), 0, gid), unix.Chmod(c.in("sg"), 0o2775)
	e4, e5 := os.WriteFile(c.in("sg/f"), nil, 0o644), unix.Mkdir(c.in("sg/d"), 0o755)
	return all(failed(e1, e2, e3, e4, e5), equal("group of a file", c.stat("sg/f").Gid, uint32(gid)), equal("of a directory", c.stat("sg/d").Gid, uint32(gid)),
		equal("its mode", c.stat("sg/d").Mode&0o7777, 0o2755))
}

func checkPermission(c *checker) string {
	if !c.many {
		return ""
	}
	read := func(name string) error {
		return c.as(33, func() error {
			_, err := os.ReadFile(c.in(name))
			return err
		})
	}
	e1 := read("secret")
	e2 := os.Chown(c.in("secret"), 33, 33)
	st := c.stat("secret")
	return all(wants(e1, unix.EACCES), failed(e2, read("secret")), equal("owner", st.Uid, 33), equal("mode", st.Mode&0o777, 0o600),
		wants(c.as(33, func() error { return os.Remove(c.in("secret")) }), unix.EACCES))
}

func checkManyOpen(c *checker) string {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return failed(err)
	}
	n := int(min(2000, lim.Cur/2))
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for i := range n {
		fd, err := unix.Open(c.in(fmt.Sprintf("open%d", i)), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return failed(err)
		}
		fds = append(fds, fd)
		if _, err := unix.Write(fd, []byte(fmt.Sprint(i))); err != nil {
			return failed(err)
		}
	}
	for i := range n {
		if err := unix.Unlink(c.in(fmt.Sprintf("open%d", i))); err != nil {
			return failed(err)
		}
	}
	b := make([]byte, 10)
	for i, fd := range fds {
		m, err := unix.Pread(fd, b, 0)
		if s := all(failed(err), equal("content", string(b[:max(m, 0)]), fmt.Sprint(i))); s != "" {
			return s
		}
	}
	return ""
}

func checkReaddirRemove(c *checker) string {
	if s := failed(unix.Mkdir(c.in("many"), 0o755)); s != "" {
		return s
	}
	const n = 1500
	for i := range n {
		if err := os.WriteFile(c.in(fmt.Sprintf("many/f%d", i)), nil, 0o644); err != nil {
			return failed(err)
		}
	}
	fd := c.open("many", unix.O_RDONLY|unix.O_DIRECTORY)
	defer unix.Close(fd)
	seen := 0
	buf := make([]byte, 2048)
	for {
		m, err := unix.Getdents(fd, buf)
		if err != nil {
			return failed(err)
		}
		if m == 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:m], -1, nil)
		for _, name := range names {
			seen++
			if err := unix.Unlink(c.in("many/" + name)); err != nil {
				return failed(err)
			}
		}
	}
	return all(equal("seen", seen, n), failed(unix.Rmdir(c.in("many"))))
}

func checkSeekdir(c *checker) string {
	fd := c.open("dir", unix.O_RDONLY|unix.O_DIRECTORY)
	defer unix.Close(fd)
	buf := make([]byte, 32)
	n, err := unix.Getdents(fd, buf)
	if err != nil || n == 0 {
		return fmt.Sprintf("getdents: %d %v", n, err)
	}
	at, e1 := unix.Seek(fd, 0, unix.SEEK_CUR)
	rest, e2 := readNames(fd)
	_, e3 := unix.Seek(fd, at, unix.SEEK_SET)
	again, e4 := readNames(fd)
	return all(failed(e1, e2, e3, e4), equal("the rest", strings.Join(again, ","), strings.Join(rest, ",")))
}

func checkSync(c *checker) string {
	var st unix.Statfs_t
	fd := c.open("file", unix.O_RDWR)
	dir := c.open("dir", unix.O_RDONLY)
	defer unix.Close(fd)
	defer unix.Close(dir)
	return all(failed(unix.Statfs(c.dir, &st), unix.Fsync(fd), unix.Fdatasync(fd), unix.Fsync(dir), unix.Syncfs(fd)), equal("name length", st.Namelen, 255))
}

func checkDevices(c *checker) string {
	return all(c.write("dev", "x"), equal("device", c.stat("dev").Dev, c.stat("big").Dev), equal("of a directory", c.stat("dir").Dev, c.stat("hard2").Dev))
}

func checkLarge(c *checker) string {
	if s := c.write("large", ""); s != "" {
		return s
	}
	fd := c.open("large", unix.O_RDWR)
	defer unix.Close(fd)
	const at = 5 << 30
	_, e1 := unix.Pwrite(fd, []byte("end"), at)
	b := make([]byte, 3)
	_, e2 := unix.Pread(fd, b, at)
	return all(failed(e1, e2, unix.Fsync(fd)), equal("content", string(b), "end"), equal("size", c.stat("large").Size, at+3), failed(os.Remove(c.in("large"))))
}

func checkConcurrent(c *checker) string {
	if s := failed(unix.Mkdir(c.in("busy"), 0o755)); s != "" {
		return s
	}
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for w := range errs {
		wg.Go(func() {
			dir := c.in(fmt.Sprintf("busy/d%d", w%4))
			_ = os.Mkdir(dir, 0o755)
			for i := range 60 {
				name := filepath.Join(dir, fmt.Sprintf("f%d-%d", w, i))
				moved := c.in(fmt.Sprintf("busy/d%d/m%d-%d", (w+1)%4, w, i))
				_ = os.Mkdir(filepath.Dir(moved), 0o755)
				err := errors.Join(os.WriteFile(name, []byte(name), 0o644), os.Chmod(name, 0o600), os.Link(name, name+".l"), os.Rename(name, moved))
				if b, rerr := os.ReadFile(moved); err == nil && (rerr != nil || string(b) != name) {
					err = fmt.Errorf("%s: %q, %w", moved, b, rerr)
				}
				if errs[w] = errors.Join(err, os.Remove(moved), os.Remove(name+".l")); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return all(failed(errs...), failed(os.RemoveAll(c.in("busy"))))
}
