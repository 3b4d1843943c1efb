package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// passed are the numbers of the files that this process was given besides the
// standard ones, where somebody may ask for them.
var passed []uint

// notePassed notes them, before there are files of this process's own.
func notePassed(args []string) error {
	asked := func(arg string) bool { return strings.HasPrefix(arg, "--preserve-fd") }
	if os.Getenv("PMI_FD") == "" && !slices.ContainsFunc(args, asked) {
		return nil
	}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("files that were passed on: %w", err)
	}
	for _, name := range names {
		fd, err := strconv.ParseUint(name.Name(), 10, 31)
		if err != nil || fd < 3 {
			continue
		}
		// What came through execve is open beyond it; all that Go opens is not.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			passed = append(passed, uint(fd))
		}
	}
	return nil
}

// preserved are duplicates of the caller's files of these numbers.
func preserved(fds []uint) ([]*os.File, error) {
	var all []*os.File
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("pass on file %d: %w", fd, err)
		}
		all = append(all, os.NewFile(uintptr(dup), fmt.Sprintf("file %d", fd)))
	}
	return all, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
