package emulation

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

func (w *worker) stat(n *notification) answer {
	return w.show(n, unix.AT_FDCWD, n.args[0], n.args[1], 0)
}

func (w *worker) lstat(n *notification) answer {
	return w.show(n, unix.AT_FDCWD, n.args[0], n.args[1], unix.AT_SYMLINK_NOFOLLOW)
}

func (w *worker) fstatat(n *notification) answer {
	return w.show(n, int32(n.args[0]), n.args[1], n.args[2], int(int32(n.args[3])))
}

func (w *worker) fstat(n *notification) answer {
	return w.showPlace(n, openFile(n.pid, int32(n.args[0])), n.args[1], 0)
}

func (w *worker) show(n *notification, dirfd int32, at, to uint64, flags int) answer {
	p, err := w.path(n, dirfd, at, flags)
	if err != nil {
		return pass()
	}
	return w.showPlace(n, p, to, flags)
}

// showPlace is stat(2): only where the owner is not what the kernel would say does it
// answer itself.
func (w *worker) showPlace(n *notification, p place, to uint64, flags int) answer {
	var st unix.Stat_t
	if err := unix.Fstatat(unix.AT_FDCWD, p.name, &st, p.follow(flags)); err != nil {
		return pass()
	}
	if w.remembered(st.Dev, int64(st.Blksize)) {
		o, err := w.ownerAt(p, flags, st.Ino, st.Ctim)
		if err != nil {
			return pass()
		}
		st.Uid, st.Gid = o.UID, o.GID
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			st.Rdev = uint64(o.Device)
		}
	} else if !w.mine(n, st.Dev, &st.Uid, &st.Gid) {
		return pass()
	}
	return result(w.write(n, to, bytesOf(&st)))
}

func (w *worker) statx(n *notification) answer {
	flags := int(int32(n.args[2]))
	p, err := w.path(n, int32(n.args[0]), n.args[1], flags)
	if err != nil {
		return pass()
	}
	var st unix.Statx_t
	// The block size tells, which statx(2) gives whatever it is asked for.
	if err := unix.Statx(unix.AT_FDCWD, p.name, p.follow(flags), int(uint32(n.args[3])), &st); err != nil {
		return pass()
	}
	dev := unix.Mkdev(st.Dev_major, st.Dev_minor)
	if w.remembered(dev, int64(st.Blksize)) {
		o, err := w.ownerAt(p, flags, st.Ino, unix.Timespec{Sec: st.Ctime.Sec, Nsec: int64(st.Ctime.Nsec)})
		if err != nil {
			return pass()
		}
		st.Uid, st.Gid = o.UID, o.GID
		if uint32(st.Mode)&unix.S_IFMT == unix.S_IFCHR {
			st.Rdev_major, st.Rdev_minor = unix.Major(uint64(o.Device)), unix.Minor(uint64(o.Device))
		}
	} else if !w.mine(n, dev, &st.Uid, &st.Gid) {
		return pass()
	}
	return result(w.write(n, n.args[4], bytesOf(&st)))
}

// ownerAt returns who owns a file of which stat(2) has just been asked.
func (w *worker) ownerAt(p place, flags int, ino uint64, changed unix.Timespec) (fuseunion.Owner, error) {
	if o, ok := w.owners.get(ino, changed); ok {
		return o, nil
	}
	now := time.Now()
	fd, err := p.open(flags)
	if err != nil {
		return fuseunion.Owner{}, err
	}
	defer unix.Close(fd)
	o, err := owner(ownFile(fd))
	var st unix.Stat_t
	if err == nil && unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH) == nil && st.Ino == ino && st.Ctim == changed {
		// It is the same file, and has been for as long.
		w.owners.put(ino, changed, o, now)
	}
	return o, err
}

// mine shows a file that nobody remembers the owner of, in a volume say, as that of
// the process that asks, if that is not root and the file belongs to the one id that
// there is: PostgreSQL serves no directory that is not its own.
func (w *worker) mine(n *notification, dev uint64, uid, gid *uint32) bool {
	if w.union && dev == w.unionDev || *uid != 0 && *gid != 0 || !w.table.any() {
		return false
	}
	who, err := w.table.of(int(n.pid))
	if err != nil || who.user.fs == 0 {
		return false
	}
	if *uid == 0 {
		*uid = who.user.fs
	}
	if *gid == 0 {
		*gid = who.group.fs
	}
	return true
}
