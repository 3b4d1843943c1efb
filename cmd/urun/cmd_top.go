package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/state"
)

// TopCmd is urun top.
type TopCmd struct {
	Container string   `arg:""`
	PsOptions []string `arg:"" optional:"" passthrough:"" name:"ps-options" help:"Options of the host's ps(1), such as aux or -o pid,args; without, the table is urun's own."`
}

// Run lists the processes of a container, as the host sees them.
func (c *TopCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	rec, err := st.Find(c.Container)
	if err != nil {
		return err
	}
	if !isUp(rec) {
		return fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	}
	pids, err := processesOf(rec)
	if err != nil {
		return err
	}
	options := c.PsOptions
	if len(options) > 0 && options[0] == "--" {
		options = options[1:]
	}
	if len(options) > 0 {
		return topByPs(app, pids, options)
	}
	return topTable(app, pids)
}

// processesOf lists a container's processes, by pid: those in the pid namespace of
// its init or, where that is somebody else's, those that descend from it.
func processesOf(rec *state.Record) ([]int, error) {
	pid := rec.Init.PID
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	}
	monitorNS, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", rec.Monitor.PID))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	parents := map[int]int{}
	var pids []int
	for _, dir := range dirs {
		p, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if ns != monitorNS {
			if got, err := os.Readlink(dir + "/ns/pid"); err == nil && got == ns {
				pids = append(pids, p)
			}
			continue
		}
		if stat, err := readStat(p); err == nil {
			parents[p] = stat.parent
		}
	}
	for p := range parents {
		for up := p; up > 1; up = parents[up] {
			if up == pid {
				pids = append(pids, p)
				break
			}
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// procStat is what is needed of /proc/PID/stat.
type procStat struct {
	name    string
	parent  int
	tty     uint64
	ticks   uint64 // of CPU time
	started uint64 // in ticks after boot
}

func readStat(pid int) (*procStat, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The name, in parentheses, may hold anything (proc_pid_stat(5)).
	text := string(raw)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return nil, fmt.Errorf("process %d: unknown format of stat", pid)
	}
	f := strings.Fields(text[end+1:])
	if len(f) < 20 {
		return nil, fmt.Errorf("process %d: unknown format of stat", pid)
	}
	number := func(i int) uint64 {
		n, _ := strconv.ParseUint(f[i], 10, 64) // the kernel writes numbers; -1 counts as none
		return n
	}
	return &procStat{
		name: text[open+1 : end], parent: int(number(1)), tty: number(4),
		ticks: number(11) + number(12), started: number(19),
	}, nil
}

// ticksASecond is USER_HZ, which is 100 on all that urun runs on.
const ticksASecond = 100

// topTable prints docker's columns.
func topTable(app *App, pids []int) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("sysinfo: %w", err)
	}
	boot := time.Now().Add(-time.Duration(info.Uptime) * time.Second)
	w := tabwriter.NewWriter(app.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD")
	for _, pid := range pids {
		st, err := readStat(pid)
		if err != nil {
			continue // it has ended
		}
		owner := "?"
		var dir unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d", pid), &dir) == nil {
			owner = userName(dir.Uid)
		}
		started := boot.Add(time.Duration(st.started) * time.Second / ticksASecond)
		used := time.Duration(st.ticks) * time.Second / ticksASecond
		share := 0
		if lived := time.Since(started); lived > 0 {
			share = int(100 * used / lived)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", owner, pid, st.parent, share, clock(started), ttyName(st.tty), cpuTime(used), commandLine(pid, st.name))
	}
	return w.Flush()
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// clock is the time of today, or the day.
func clock(t time.Time) string {
	if time.Since(t) < 24*time.Hour {
		return t.Format("15:04")
	}
	return t.Format("Jan02")
}

func cpuTime(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

// ttyName is the terminal of a process: a pty, or none.
func ttyName(dev uint64) string {
	if dev == 0 {
		return "?"
	}
	return fmt.Sprintf("pts/%d", unix.Minor(dev))
}

// commandLine is a process's command line, in one line that a terminal may show.
func commandLine(pid int, name string) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(raw) == 0 {
		return "[" + harmless(name) + "]"
	}
	return harmless(strings.ReplaceAll(strings.TrimRight(string(raw), "\x00"), "\x00", " "))
}

// harmless keeps a program inside from writing to the terminal of who looks.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// topByPs has the host's ps list all processes and keeps the container's.
func topByPs(app *App, pids []int, options []string) error {
	ps, err := exec.LookPath("ps")
	if err != nil {
		return &hintError{errors.New("top: options need the host's ps"), "apt-get install procps, or leave the options out"}
	}
	out, err := exec.Command(ps, options...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			// Usage follows.
			if said, _, _ := strings.Cut(strings.TrimSpace(string(exit.Stderr)), "\n"); said != "" {
				err = errors.New(strings.TrimPrefix(said, "error: "))
			}
		}
		return &hintError{fmt.Errorf("top: ps %s: %w", strings.Join(options, " "), err), "options are those of ps(1), and the column PID must be among what it shows"}
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return &hintError{fmt.Errorf("top: ps %s shows no PID", strings.Join(options, " ")), "add the column: -o pid,..."}
	}
	fmt.Fprintln(app.Stdout, lines[0])
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprintln(app.Stdout, harmless(line))
		}
	}
	return nil
}
