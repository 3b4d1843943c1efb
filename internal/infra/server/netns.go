package server

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// thread is an OS thread in the bridges' network namespace, on which functions are run one after the other.
type thread struct {
	calls chan func()
	// netns is the namespace.
	netns *os.File
}

// newThread makes the thread with a new network namespace, or with one that is there.
func newThread(netns *os.File) (*thread, error) {
	t := &thread{calls: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread is in another namespace than the others
		ready <- t.enter(netns)
		for f := range t.calls {
			f()
		}
	}()
	return t, <-ready
}

func (t *thread) enter(netns *os.File) (err error) {
	if netns != nil {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace of the bridges: %w", err)
		}
	} else if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make the network namespace of the bridges: %w", err)
	}
	t.netns, err = os.Open("/proc/thread-self/ns/net")
	return err
}

// do runs f on the thread.
func (t *thread) do(f func() error) error {
	done := make(chan error, 1)
	t.calls <- func() { done <- f() }
	return <-done
}

// within runs f on a thread in a container's network namespace. The thread ends with it.
func within(netns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: nothing else may run on this thread
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the container's network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// writeSysctl sets a kernel parameter of the calling thread's network namespace.
func writeSysctl(name, value string) error {
	f, err := os.OpenFile("/proc/sys/net/"+name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
