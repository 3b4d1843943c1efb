package emulation

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// chown makes the handler of a call with a path and, behind it, owner and group.
func chown(path, owner int, flags int) handler {
	return func(w *worker, n *notification) answer {
		return w.give(n, unix.AT_FDCWD, n.args[path], flags, uint32(n.args[owner]), uint32(n.args[owner+1]))
	}
}

func (w *worker) fchownat(n *notification) answer {
	return w.give(n, int32(n.args[0]), n.args[1], int(int32(n.args[4])), uint32(n.args[2]), uint32(n.args[3]))
}

func (w *worker) fchown(n *notification) answer {
	fd, err := openFile(n.pid, int32(n.args[0])).open(0)
	if err != nil {
		return pass()
	}
	defer unix.Close(fd)
	return w.giveFile(n, fd, uint32(n.args[1]), uint32(n.args[2]))
}

// give is chown(2) of a path.
func (w *worker) give(n *notification, dirfd int32, at uint64, flags int, uid, gid uint32) answer {
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return result(unix.EINVAL)
	}
	p, err := w.path(n, dirfd, at, flags)
	if err != nil {
		return pass()
	}
	fd, err := p.open(flags)
	if err != nil {
		return pass() // the kernel looks the file up before it looks at the ids
	}
	defer unix.Close(fd)
	return w.giveFile(n, fd, uid, gid)
}

// giveFile gives a file to ids that are not mapped. The kernel does what it can: it gives it
// to the one id that is, which checks whether it may be changed and clears
// what a change of owner clears. Then the union is told whose it really is.
func (w *worker) giveFile(n *notification, fd int, uid, gid uint32) answer {
	who, err := w.table.of(int(n.pid))
	if err != nil {
		return result(err)
	}
	if !who.privileged() {
		owner, err := w.ownerOf(fd)
		if err != nil {
			return result(err)
		}
		if owner.UID != who.user.fs || uid != keep && uid != owner.UID || gid != keep && !who.inGroup(gid) {
			return result(unix.EPERM)
		}
	}
	mapped := func(id uint32) int {
		if id == keep {
			return -1
		}
		return 0
	}
	if err := unix.Fchownat(fd, "", mapped(uid), mapped(gid), unix.AT_EMPTY_PATH); err != nil {
		return result(err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return result(err)
	}
	if !w.union || st.Dev != w.unionDev {
		return answer{} // nobody here remembers it
	}
	err = remember(fd, fuseunion.Owner{UID: uid, GID: gid})
	w.owners.forget(st.Ino)
	return result(err)
}

// remember tells the union of a file's owner.
func remember(fd int, o fuseunion.Owner) error {
	if err := unix.Setxattr(ownFile(fd), fuseunion.OwnerXattr, o.Encode(), 0); err != nil {
		return err
	}
	// The kernel does not ask again what it knows of a regular file when an attribute
	// changes (fuse_get_cache_mask, with its writeback cache). The answer to any chown
	// tells it.
	return unix.Fchownat(fd, "", -1, -1, unix.AT_EMPTY_PATH)
}

// ownerOf returns to whom an open file belongs.
func (w *worker) ownerOf(fd int) (fuseunion.Owner, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return fuseunion.Owner{}, err
	}
	if !w.remembered(st.Dev, int64(st.Blksize)) {
		return fuseunion.Owner{UID: st.Uid, GID: st.Gid}, nil
	}
	return owner(ownFile(fd))
}

// remembered tells whether a file, of this device and block size, belongs to somebody who is not mapped.
func (w *worker) remembered(dev uint64, blksize int64) bool {
	return w.union && dev == w.unionDev && blksize == fuseunion.OwnedBlksize
}

func owner(path string) (fuseunion.Owner, error) {
	var buf [64]byte
	n, err := unix.Getxattr(path, fuseunion.OwnerXattr, buf[:])
	if err != nil {
		return fuseunion.Owner{}, err
	}
	return fuseunion.DecodeOwner(buf[:n])
}

// place is a path of a process as a worker has to write it.
type place struct {
	name string
	// link says that it is a link of /proc to an open file: to be followed, whatever
	// the call says of links.
	link bool
}

// open opens a file without using it, so that several calls mean the same one; flags
// are those of fstatat(2).
func (p place) open(flags int) (int, error) {
	open := unix.O_PATH | unix.O_CLOEXEC
	if p.follow(flags)&unix.AT_SYMLINK_NOFOLLOW != 0 {
		open |= unix.O_NOFOLLOW
	}
	return unix.Open(p.name, open, 0)
}

// follow takes from the flags of fstatat(2) what does not fit a link of /proc.
func (p place) follow(flags int) int {
	if p.link {
		flags &^= unix.AT_SYMLINK_NOFOLLOW
	}
	return flags &^ unix.AT_EMPTY_PATH
}

// path reads a path of a process; flags are those of fstatat(2).
func (w *worker) path(n *notification, dirfd int32, at uint64, flags int) (place, error) {
	path, err := n.readString(at)
	if err != nil {
		return place{}, err
	}
	if path == "" {
		if flags&unix.AT_EMPTY_PATH == 0 {
			return place{}, unix.ENOENT
		}
		return openFile(n.pid, dirfd), nil
	}
	if err := w.enterRoot(n.pid); err != nil {
		return place{}, err
	}
	if !strings.HasPrefix(path, "/") {
		return place{name: openFile(n.pid, dirfd).name + "/" + path}, nil
	}
	for _, self := range []string{"/proc/self/", "/proc/thread-self/"} {
		// These are who asks.
		if rest, ok := strings.CutPrefix(path, self); ok {
			return place{name: strconv.Itoa(int(n.pid)) + "/" + rest}, nil
		}
	}
	return place{name: path}, nil
}

// openFile is an open file of a process, or its working directory.
func openFile(pid uint32, fd int32) place {
	b := strconv.AppendUint(make([]byte, 0, 64), uint64(pid), 10)
	if fd == unix.AT_FDCWD {
		return place{name: string(append(b, "/cwd"...)), link: true}
	}
	return place{name: string(strconv.AppendInt(append(b, "/fd/"...), int64(fd), 10)), link: true}
}

// ownFile is an open file of this process below /proc.
func ownFile(fd int) string { return "self/fd/" + strconv.Itoa(fd) }

// enterRoot makes the root directory of a process that of the worker.
func (w *worker) enterRoot(pid uint32) error {
	name := strconv.Itoa(int(pid)) + "/root"
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return err
	}
	if w.root.dev == st.Dev && w.root.ino == st.Ino {
		return nil
	}
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	err = unix.Chroot(".")
	if err == nil {
		w.root.dev, w.root.ino = st.Dev, st.Ino
	}
	if back := unix.Fchdir(int(w.proc.Fd())); back != nil {
		return back
	}
	return err
}

func (w *worker) mknod(n *notification) answer {
	return w.makeDevice(n, unix.AT_FDCWD, n.args[0], uint32(n.args[1]), uint32(n.args[2]))
}

func (w *worker) mknodat(n *notification) answer {
	return w.makeDevice(n, int32(n.args[0]), n.args[1], uint32(n.args[2]), uint32(n.args[3]))
}

// makeDevice makes a character device as far as that can be done: it can not be opened, as no device of the
// container's file system can, but it is there, and is kept. The kernel lets everybody make 0/0, with which overlayfs
// marks removed files; the union is told what it really is. Block devices have nothing of the kind.
func (w *worker) makeDevice(n *notification, dirfd int32, at uint64, mode, dev uint32) answer {
	who, err := w.table.of(int(n.pid))
	if err != nil || !who.privileged() || !w.union || mode&unix.S_IFMT != unix.S_IFCHR {
		return pass()
	}
	p, err := w.path(n, dirfd, at, 0)
	if err != nil {
		return pass()
	}
	mask, err := strconv.ParseUint(statusOf(n.pid, "Umask"), 8, 32)
	if err != nil {
		return pass()
	}
	unix.Umask(int(mask)) // this thread's alone: it shares none with others
	if err := unix.Mknod(p.name, mode, 0); err != nil {
		return result(err)
	}
	fd, err := p.open(unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return result(err)
	}
	defer unix.Close(fd)
	return result(remember(fd, fuseunion.Owner{UID: keep, GID: keep, Device: dev}))
}

// statusOf is a field of a process's status; empty if there is none.
func statusOf(pid uint32, field string) string {
	raw, err := readFile(strconv.Itoa(int(pid)) + "/status")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(raw) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// readFile reads a file below /proc. Package os would take a relative path for one of
// the working directory of the process, which is the worker's only on its thread.
func readFile(name string) (string, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 8192)
	n, err := unix.Read(fd, buf)
	return string(buf[:max(n, 0)]), err
}
