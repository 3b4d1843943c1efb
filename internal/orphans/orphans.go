// Package orphans ends processes that outlive the one that they belong to, where no pid namespace and
// no cgroup does: their parent adopts what they leave behind (PR_SET_CHILD_SUBREAPER, prctl(2)), and
// kills that. It is for monitors of containers without a pid namespace, and for holders of such that have no
// namespaces at all, which end what a killed monitor has left.
package orphans

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Adopt makes this process the parent of its descendants' orphans.
func Adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	return nil
}

// End kills and reaps every child of this process, but for those that are spared, until there is none: a
// child's own children become ours when it dies. Whoever else waits for a child has it spared.
func End(spare func(pid int) bool) error {
	for {
		pids, err := children()
		pids = slices.DeleteFunc(pids, spare)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		for _, pid := range pids {
			if err := reap(pid); err != nil {
				return err
			}
		}
	}
}

func reap(pid int) error {
	for {
		_, err := unix.Wait4(pid, nil, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ECHILD) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reap process %d: %w", pid, err)
		}
		return nil
	}
}

// children lists the children of all threads of this process. Not all kernels
// have /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN), so the parents of all processes
// are looked at.
func children() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	own := strconv.Itoa(os.Getpid())
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended meanwhile
		}
		// PID (COMM) STATE PPID: the name may hold anything.
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(f) > 1 && f[1] == own {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
