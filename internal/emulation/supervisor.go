package emulation

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/seccomp"
)

// Supervisor answers the calls of a container's processes.
type Supervisor struct {
	proc     *os.File // /proc, as this process sees it
	calls    map[seccomp.Call]handler
	table    identities
	union    bool
	unionDev uint64
	owners   owners
}

type handler func(*worker, *notification) answer

// New makes the supervisor of a container; init is a process in it. Union says that
// its root is a union that remembers owners.
func New(init int, union bool) (*Supervisor, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	s := &Supervisor{proc: proc, union: union, calls: map[seccomp.Call]handler{}}
	names, err := seccomp.EmulatedCalls()
	for call, name := range names {
		s.calls[call] = handlers()[name]
	}
	if err == nil && union {
		var st unix.Stat_t
		err = unix.Stat(fmt.Sprintf("/proc/%d/root", init), &st)
		s.unionDev = st.Dev
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("emulate root: %w", err), proc.Close())
	}
	return s, nil
}

// Serve answers the calls that come in on a listener, which it takes, until no
// process is left that makes any. It returns at once.
func (s *Supervisor) Serve(listener *os.File) {
	fd := int(listener.Fd()) // blocking, which ioctl(2) is anyway
	// The process and its supervisor take turns: let them do so on one CPU (Linux 6.6;
	// without it, it only takes longer).
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	l := newListener(fd)
	left := make(chan struct{})
	for range workers {
		go func() {
			defer func() { left <- struct{}{} }()
			s.work(l)
		}()
	}
	go l.watch()
	go func() {
		for range workers {
			<-left
		}
		close(l.busy)
		listener.Close()
	}()
}

// worker is a thread that answers. Its root directory is that of the process whose
// call it answers, and its working directory is /proc: so absolute paths of the
// process mean what they mean to it, and its own files have relative ones.
type worker struct {
	*Supervisor
	*listener
	root struct{ dev, ino uint64 }
}

// notification is struct seccomp_notif.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// pass has the kernel make the call itself, as it also reports what is wrong with it.
func pass() answer { return answer{flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE} }

func value(v uint32) answer { return answer{value: int64(v)} }

// result is the answer that an error stands for.
func result(err error) answer {
	var errno unix.Errno
	switch {
	case err == nil:
		return answer{}
	case errors.As(err, &errno):
		return answer{errno: -int32(errno)}
	}
	return answer{errno: -int32(unix.EIO)}
}

func (s *Supervisor) work(l *listener) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	w := &worker{Supervisor: s, listener: l}
	if unix.Unshare(unix.CLONE_FS) != nil || unix.Fchdir(int(s.proc.Fd())) != nil {
		return // the other workers can not either: calls get ENOSYS when the listener closes
	}
	for {
		<-l.lead
		for leads := true; leads; {
			var n notification
			got, err := l.receive(&n)
			if err != nil {
				l.lead <- struct{}{} // that the others see it too
				return
			}
			if !got {
				continue
			}
			turn := l.begin()
			a := w.answer(&n)
			a.id = n.id
			// It may be gone, and nobody waits for the answer.
			_, _, _ = unix.RawSyscall(unix.SYS_IOCTL, uintptr(l.fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a)))
			leads = l.finish(turn)
		}
	}
}

func (w *worker) answer(n *notification) answer {
	h := w.calls[seccomp.Call{Arch: n.arch, Nr: n.nr}]
	if h == nil || n.pid == 0 { // 0: of a pid namespace that this process does not see
		return pass()
	}
	return h(w, n)
}

// waits tells whether the process still waits for this answer: if not, its pid may
// be another's by now.
func (w *worker) waits(n *notification) bool {
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(w.fd), unix.SECCOMP_IOCTL_NOTIF_ID_VALID, uintptr(unsafe.Pointer(&n.id)))
	return errno == 0
}
