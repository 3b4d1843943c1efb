package launch

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/batch"
	"github.com/urun-dev/urun/internal/state"
)

// JobShell is the process that this process's batch job, or the part of it that it belongs to, began with on this node: the outermost ancestor
// that has the job's name in its environment and may be looked at, or, where only the parent can have put it there (a shell that exports it), the
// parent. The zero Process: there is none, or the batch system itself started this one.
//
// Not the parent in general: that may be a script that starts something in the background and ends.
func JobShell() state.Process {
	var shell state.Process
	job, ok := batch.Of(os.Getenv)
	if !ok {
		return shell
	}
	for pid := os.Getppid(); pid > 1; {
		p, err := state.ProcessOf(pid)
		if err != nil {
			break
		}
		named, mine := names(pid, job)
		if !named && (!mine || shell.PID != 0) {
			break
		}
		if shell = p; !named {
			break
		}
		if pid, err = state.ParentOf(pid); err != nil {
			break
		}
	}
	return shell
}

// names tells whether a process has the job's name in the environment that it began with, and whether it is this user's.
func names(pid int, job batch.Job) (named, mine bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || int(st.Uid) != os.Getuid() {
		return false, false
	}
	env, err := os.ReadFile(dir + "/environ")
	if err != nil {
		return false, false // another's, or one that may not be looked at
	}
	line := []byte(job.Variable + "=" + job.ID)
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(v, line) {
			return true, true
		}
	}
	return false, true
}
