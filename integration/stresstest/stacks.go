package stresstest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// stackTime is how long a process may take to print its stacks and end.
const stackTime = 5 * time.Second

// stuck tells what a command that does not end waits for: the goroutines of the command and of the monitor of the
// container that it names, and what the kernel says of that monitor's processes. Both end by it. Stderr is where the
// command writes to; wait returns when it has ended.
func stuck(cmd *exec.Cmd, stderr fmt.Stringer, wait <-chan error) string {
	var b strings.Builder
	name := cmd.Args[len(cmd.Args)-1]
	for _, a := range cmd.Args {
		if strings.HasPrefix(a, "stress-") {
			name = a
		}
	}
	raw, rec, err := recordOf(name)
	fmt.Fprintf(&b, "record of %s (%v): %s\n", name, err, raw)
	for _, who := range []struct {
		what string
		pid  int
	}{{"creator", rec.Creator.PID}, {"monitor", rec.Monitor.PID}, {"init", rec.Init.PID}} {
		fmt.Fprintf(&b, "%s: %s", who.what, describe(who.pid))
	}
	if said, err := quit(cmd.Process.Pid, stderr, wait); err != nil {
		fmt.Fprintf(&b, "the command's stacks: %v\n", err)
	} else {
		fmt.Fprintf(&b, "the command's stacks:\n%s\n", said)
	}
	fmt.Fprintf(&b, "the monitor's stacks:\n%s\n", monitorStacks(rec.Monitor.PID))
	return b.String()
}

type process struct{ PID int }

type record struct{ Creator, Monitor, Init process }

// recordOf reads the record of a container as it is on disk.
func recordOf(name string) (raw []byte, rec record, err error) {
	id, err := os.Readlink(filepath.Join(harness.Store, "names", name))
	if err != nil {
		return nil, rec, err
	}
	raw, err = os.ReadFile(filepath.Join(harness.Store, "containers", id, "state.json"))
	if err == nil {
		err = json.Unmarshal(raw, &rec)
	}
	return raw, rec, err
}

// describe says of a process and its children what they are, and where their threads are in the kernel.
func describe(pid int) string {
	if pid == 0 {
		return "none\n"
	}
	dir := fmt.Sprintf("/proc/%d", pid)
	line, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return fmt.Sprintf("%d: gone\n", pid)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s", pid, bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
	tasks, _ := filepath.Glob(dir + "/task/*")
	var children []string
	for _, task := range tasks {
		stat, _ := os.ReadFile(task + "/stat")
		wchan, _ := os.ReadFile(task + "/wchan")
		state, _, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " 0 ")
		fmt.Fprintf(&b, " [%s %s]", strings.Fields(state + " ?")[0], wchan)
		c, _ := os.ReadFile(task + "/children")
		children = append(children, strings.Fields(string(c))...)
	}
	b.WriteByte('\n')
	for _, c := range children {
		var child int
		if _, err := fmt.Sscan(c, &child); err == nil {
			b.WriteString("  child " + describe(child))
		}
	}
	return b.String()
}

// quit has a Go program print its stacks, which ends it.
func quit(pid int, stderr fmt.Stringer, wait <-chan error) (string, error) {
	if err := unix.Kill(pid, unix.SIGQUIT); err != nil {
		return "", err
	}
	select {
	case <-wait:
		return stderr.String(), nil
	case <-time.After(stackTime):
		return "", errors.New("it does not even end by SIGQUIT")
	}
}

// monitorStacks are the goroutines of a detached container's monitor, whose standard error is its holder's file.
func monitorStacks(pid int) string {
	if pid == 0 {
		return "there is no monitor"
	}
	file := fmt.Sprintf("/proc/%d/fd/2", pid)
	where, err := os.Readlink(file)
	if err != nil {
		return err.Error()
	}
	before, err := os.ReadFile(where)
	if err != nil {
		return err.Error() // a terminal or a pipe of somebody else
	}
	if err := unix.Kill(pid, unix.SIGQUIT); err != nil {
		return err.Error()
	}
	for end := time.Now().Add(stackTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if unix.Kill(pid, 0) != nil {
			break
		}
	}
	after, err := os.ReadFile(where)
	if err != nil {
		return err.Error()
	}
	return string(after[min(len(before), len(after)):])
}
