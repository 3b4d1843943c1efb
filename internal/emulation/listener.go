package emulation

import (
	"errors"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// workers answer the calls of one listener. An answer may have to wait for a file
// system that a process of the container serves, which may have to be answered first.
const workers = 4

// patience is how long an answer may take before another worker waits for calls.
const patience = 2 * time.Millisecond

// listener is where calls come in. One worker, who leads, waits for them and answers
// them: if all did, each call would wake all, and that costs more than most answers.
// Only if an answer takes long another one is let lead.
type listener struct {
	fd   int
	lead chan struct{} // with one value in it, or somebody leads
	// turn is odd while the leader answers. Who makes it even ends that: the leader, who
	// then still leads, or watch, and another one does.
	turn    atomic.Uint64
	watched atomic.Bool
	busy    chan struct{} // for watch: there are calls
}

func newListener(fd int) *listener {
	l := &listener{fd: fd, lead: make(chan struct{}, 1), busy: make(chan struct{}, 1)}
	l.lead <- struct{}{}
	return l
}

var errNobodyLeft = errors.New("no process is left that makes calls")

// receive waits for a call. It got none if the process has died meanwhile.
func (l *listener) receive(n *notification) (got bool, err error) {
	poll := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
		return false, err
	}
	switch re := poll[0].Revents; {
	case re&unix.POLLIN != 0:
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l.fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(n)))
		return errno == 0, nil
	case re&(unix.POLLHUP|unix.POLLNVAL) != 0:
		return false, errNobodyLeft
	}
	return false, nil // POLLERR: a signal came while the kernel waited for its lock
}

func (l *listener) begin() (turn uint64) {
	turn = l.turn.Add(1)
	if l.watched.CompareAndSwap(false, true) {
		l.busy <- struct{}{}
	}
	return turn
}

// finish ends a turn and tells whether the worker still leads.
func (l *listener) finish(turn uint64) bool { return l.turn.CompareAndSwap(turn, turn+1) }

// watch has another worker lead when an answer takes long. While no calls come it sleeps.
func (l *listener) watch() {
	for range l.busy {
		for {
			before := l.turn.Load()
			time.Sleep(patience)
			if l.turn.Load() != before {
				continue
			}
			if before%2 == 0 {
				break
			}
			if l.finish(before) {
				l.lead <- struct{}{}
			}
		}
		l.watched.Store(false)
		// A call may have come just before.
		if l.turn.Load()%2 == 1 && l.watched.CompareAndSwap(false, true) {
			l.busy <- struct{}{}
		}
	}
}
