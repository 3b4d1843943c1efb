package emulation

import (
	"encoding/binary"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (w *worker) execve(n *notification) answer {
	return w.execute(n, unix.AT_FDCWD, n.args[0], 0)
}

func (w *worker) execveat(n *notification) answer {
	return w.execute(n, int32(n.args[0]), n.args[1], int(int32(n.args[4])))
}

// execute gives a process the ids that the file it executes asks for, and lets the
// kernel execute it. Should that fail after all, it has them nevertheless.
func (w *worker) execute(n *notification, dirfd int32, at uint64, flags int) answer {
	who, err := w.table.of(int(n.pid))
	if err != nil {
		return pass()
	}
	next := who
	next.keepCaps, next.capable = false, false
	next.user.saved, next.group.saved = who.user.effective, who.group.effective
	if p, err := w.path(n, dirfd, at, flags); err == nil {
		if fd, err := p.open(flags); err == nil {
			w.setID(n, fd, &next)
			unix.Close(fd)
		}
	}
	if !next.equal(&who) && w.table.become(int(n.pid), &next) != nil {
		return result(unix.EAGAIN)
	}
	return pass()
}

// setID does what the set-id bits of an executable ask for.
func (w *worker) setID(n *notification, fd int, who *Identity) {
	var st unix.Stat_t
	if unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH) != nil || w.union && st.Dev != w.unionDev {
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 || st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Flags&unix.ST_NOSUID != 0 || statusOf(n.pid, "NoNewPrivs") != "0" {
		return
	}
	owner, err := w.ownerOf(fd)
	if err != nil {
		return
	}
	if st.Mode&unix.S_ISUID != 0 {
		who.user.effective, who.user.saved, who.user.fs = owner.UID, owner.UID, owner.UID
	}
	// Without group execution the bit once meant mandatory locking.
	if st.Mode&unix.S_ISGID != 0 && st.Mode&0o010 != 0 {
		who.group.effective, who.group.saved, who.group.fs = owner.GID, owner.GID, owner.GID
	}
}

// peer is getsockopt(2) of SO_PEERCRED: who is at the other end of a UNIX socket.
// The kernel knew one id when the two were connected; what counts here is who the
// peer is now.
func (w *worker) peer(n *notification) answer {
	if !w.table.any() {
		return pass()
	}
	cred, err := peerOf(n)
	if err != nil || cred.Pid <= 0 {
		return pass()
	}
	who, err := w.table.of(int(cred.Pid))
	if err != nil || who.equal(&Identity{}) {
		return pass()
	}
	var raw [4]byte
	if err := n.read(n.args[4], raw[:]); err != nil {
		return result(err)
	}
	cred.Pid, cred.Uid, cred.Gid = insidePID(n.pid, uint32(cred.Pid)), who.user.effective, who.group.effective
	b := bytesOf(cred)
	size := min(binary.NativeEndian.Uint32(raw[:]), uint32(len(b)))
	if err := w.write(n, n.args[3], b[:size]); err != nil {
		return result(err)
	}
	return result(w.write(n, n.args[4], binary.NativeEndian.AppendUint32(nil, size)))
}

func peerOf(n *notification) (*unix.Ucred, error) {
	// A pidfd is that of a process, and the call may be that of any of its threads.
	pid, err := strconv.Atoi(statusOf(n.pid, "Tgid"))
	if err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, int(int32(n.args[0])), 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
}

// insidePID is the pid of a process as another one sees it; 0 if it does not.
func insidePID(observer, pid uint32) int32 {
	depth := len(strings.Fields(statusOf(observer, "NSpid")))
	pids := strings.Fields(statusOf(pid, "NSpid"))
	if depth == 0 || depth > len(pids) {
		return 0
	}
	v, err := strconv.ParseInt(pids[depth-1], 10, 32)
	if err != nil {
		return 0
	}
	return int32(v)
}
