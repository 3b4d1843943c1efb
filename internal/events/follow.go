package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pollTime is how often a followed log is looked at although nobody said that it
// changed: on a shared file system inotify(7) hears of this machine's changes only.
const pollTime = 2 * time.Second

// Follow is Read that goes on with what happens from now on, until the context
// ends.
func Follow(ctx context.Context, root string, f func(Event) error) error {
	if err := os.MkdirAll(dir(root), 0o700); err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	// Before the log is read: nothing that comes meanwhile is missed.
	w, err := watch(dir(root))
	if err != nil {
		return err
	}
	defer w.Close()
	stop := context.AfterFunc(ctx, func() { _ = w.SetReadDeadline(time.Now()) })
	defer stop()
	r := &reader{root: root}
	defer r.close()
	if err := r.all(f); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for last := false; ; {
		if err := r.rest(f); err != nil {
			return err
		}
		if r.replaced() {
			// Once more: the last line may have come before the log was replaced.
			if err := r.rest(f); err != nil {
				return err
			}
			if err := r.open(logFile); err != nil {
				return err
			}
			continue
		}
		if last {
			return nil
		}
		if err := w.SetReadDeadline(time.Now().Add(pollTime)); err != nil {
			return fmt.Errorf("watch event log: %w", err)
		}
		if ctx.Err() != nil {
			last = true // with what came before the end
			continue
		}
		// What the messages say does not matter: that there is one does.
		if _, err := w.Read(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("watch event log: %w", err)
		}
	}
}

func watch(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch event log: %w", err)
	}
	w := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return nil, errors.Join(fmt.Errorf("watch event log: %w", err), w.Close())
	}
	return w, nil
}
