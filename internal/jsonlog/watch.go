package jsonlog

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watchTime is how long a watcher waits at most, in milliseconds: a network file
// system does not tell of what other machines write. pollTime is for where there
// is no inotify to be had (fs.inotify.max_user_instances).
const (
	watchTime = 1000
	pollTime  = 100
)

// watcher waits for changes beside a file: in the file, in those it is rotated
// to, and in the record of the container, which tells of its end.
type watcher struct{ fd int }

func watch(name string) *watcher {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return &watcher{-1}
	}
	const events = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(name), events); err != nil {
		unix.Close(fd)
		return &watcher{-1}
	}
	return &watcher{fd}
}

// wait returns after a change, or some time.
func (w *watcher) wait() {
	if w.fd < 0 {
		_, _ = unix.Poll(nil, pollTime)
		return
	}
	// An error, a signal for instance, only makes the caller look again.
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, watchTime); n <= 0 {
		return
	}
	// What has happened does not matter, only that it is read.
	var buf [4096]byte
	for {
		if _, err := unix.Read(w.fd, buf[:]); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (w *watcher) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
}
