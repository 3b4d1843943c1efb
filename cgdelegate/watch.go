package cgdelegate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchFile reads a control file until done says so or ctx ends. The kernel
// tells of every change of cgroup.events and memory.events by inotify's IN_MODIFY
// (cgroup-v2.rst), so nothing is polled.
func watchFile(ctx context.Context, path string, done func(text string) bool) (err error) {
	check := func() (bool, error) {
		data, err := os.ReadFile(path)
		return err == nil && done(string(data)), err
	}
	if ok, err := check(); ok || err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	// A non-blocking descriptor in an os.File is served by Go's poller, so a
	// deadline ends a Read, and no thread waits.
	events := os.NewFile(uintptr(fd), "inotify")
	defer func() { err = errors.Join(err, events.Close()) }()
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY|unix.IN_DELETE_SELF); err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	stop := context.AfterFunc(ctx, func() {
		// The past: whatever read is under way ends at once.
		_ = events.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	buf := make([]byte, 4096)
	for {
		// After the watch is set: a change before it would be missed otherwise.
		if ok, err := check(); ok || err != nil {
			return err
		}
		if _, err := events.Read(buf); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("watch %s: %w", path, err)
		}
	}
}
