package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/userns"
)

// Observation is what was seen of the machine.
type Observation struct {
	Kernel string // release
	User   string // login name, or the number where there is none

	// Map is the id map that the user gets, MapErr why there is none.
	Map    userns.Map
	MapErr error
	// NamespaceErr is why no user namespace can be made, HelperErr why newuidmap
	// and newgidmap are of no use.
	NamespaceErr, HelperErr error
	// Without is what a container of root's is where there is no user namespace: as a whole, or a chroot.
	Without Without
	// FreeIDs is where 65536 ids begin that nobody was granted.
	FreeIDs uint32
	// Trials are the results of the attempts in the namespace, by name; empty if
	// there is no namespace to try in.
	Trials map[string]Trial

	Filtered   bool // a seccomp filter is around this process
	NoNewPrivs bool
	Devices    map[string]error // what opening /dev/fuse and /dev/net/tun gave
	Drivers    map[string]bool  // which of them the kernel has the driver of

	PingRange      string // net.ipv4.ping_group_range
	InPingRange    bool
	FirstFreePort  string // net.ipv4.ip_unprivileged_port_start
	Cgroups        cgdelegate.Support
	Linger         bool // the user's services outlive the last session
	HasSystemd     bool // systemd runs this machine
	Store          Store
	OpenFiles      uint64 // RLIMIT_NOFILE, soft
	OpenFilesLimit uint64 // hard
}

// Without says what is left without a user namespace.
type Without string

const (
	WithoutNothing Without = ""       // nothing: this is not root
	WithoutMounts  Without = "chroot" // a directory
	WithoutUserNS  Without = "root"   // all other namespaces, and mounts
)

// Trial is the result of one attempt.
type Trial struct {
	Errno unix.Errno `json:"errno,omitempty"`
	Error string     `json:"error,omitempty"` // "" for success
}

// Failed says whether the attempt did not succeed; one that was not made has not failed.
func (t Trial) Failed() bool { return t.Error != "" }

// Store is the file system that the store lies on.
type Store struct {
	Dir        string
	Type       string // "ext4", or the number of statfs(2)
	Err        error  // why nothing can be written there
	Cure       string // what helps against that
	FreeBytes  uint64
	FreeInodes uint64
	NoInodes   bool // the file system does not count inodes
}

// Observe looks at the machine. Exe is this binary, dir the store's directory,
// which need not exist, images that of the images, which is another one if it belongs to somebody else. The error is one of looking, not of the machine.
func Observe(ctx context.Context, exe, dir, images string) (*Observation, error) {
	o := &Observation{Trials: map[string]Trial{}, Devices: map[string]error{}, Drivers: map[string]bool{}}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	o.Kernel = unix.ByteSliceToString(uts.Release[:])
	me := userns.Current()
	o.User = me.Name
	if o.User == "" {
		o.User = strconv.Itoa(me.UID)
	}
	status := readFile("/proc/self/status")
	o.Filtered = field(status, "Seccomp") == "2"
	o.NoNewPrivs = field(status, "NoNewPrivs") == "1"
	misc := readFile("/proc/misc")
	for _, dev := range []string{"/dev/fuse", "/dev/net/tun"} {
		o.Devices[dev] = openDevice(dev)
		o.Drivers[dev] = strings.Contains(misc, " "+filepath.Base(dev)+"\n")
	}
	o.readSettings(me)
	o.Cgroups = cgdelegate.Probe(ctx)
	scratch, err := o.observeStore(dir, images)
	if err != nil {
		return nil, err
	}
	if scratch != "" {
		defer func() { err = errors.Join(err, removeScratch(scratch)) }()
	}
	o.FreeIDs = freeIDs(readFile("/etc/subuid") + "\n" + readFile("/etc/subgid"))
	o.HelperErr = userns.HelpersUsable()
	if o.Map, o.MapErr = userns.Plan(userns.Request{}, me); o.MapErr != nil {
		return o, nil
	}
	return o, o.try(ctx, exe, scratch)
}

func (o *Observation) readSettings(me userns.Identity) {
	o.PingRange = strings.Join(strings.Fields(readFile("/proc/sys/net/ipv4/ping_group_range")), " ")
	o.InPingRange = inRange(o.PingRange, os.Getegid())
	o.FirstFreePort = strings.TrimSpace(readFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"))
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	o.HasSystemd = err == nil
	_, err = os.Stat(filepath.Join("/var/lib/systemd/linger", me.Name))
	o.Linger = err == nil && me.Name != ""
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		o.OpenFiles, o.OpenFilesLimit = lim.Cur, lim.Max
	}
}

// try starts the stage that makes the attempts. The pid namespace comes with the
// process, all others are attempts of their own.
func (o *Observation) try(ctx context.Context, exe, scratch string) error {
	trials, err := startStage(ctx, exe, o.Map, unix.CLONE_NEWPID, scratch)
	if err != nil {
		// Which of the two namespaces is it?
		withPID := err
		if trials, err = startStage(ctx, exe, o.Map, 0, scratch); err == nil {
			o.Trials[TrialPID] = trialOf(withPID)
		}
	}
	if err != nil && !o.Map.Single() {
		// Perhaps the ranges are the matter.
		ranges := err
		me := userns.Current()
		single, perr := userns.Plan(userns.Request{Mode: userns.ModeSingle}, me)
		if perr != nil {
			return perr
		}
		if trials, err = startStage(ctx, exe, single, unix.CLONE_NEWPID, scratch); err == nil {
			o.HelperErr, o.MapErr = ranges, ranges
		}
	}
	if err != nil {
		o.NamespaceErr = err
		return o.without(ctx, exe, scratch)
	}
	for name, t := range trials {
		o.Trials[name] = t
	}
	return nil
}

// without finds out what root gets without a user namespace.
func (o *Observation) without(ctx context.Context, exe, scratch string) error {
	switch {
	case os.Geteuid() != 0:
	case userns.MayMount():
		m, err := userns.Outer()
		if err != nil {
			return err
		}
		if o.Trials, err = startStage(ctx, exe, m, unix.CLONE_NEWPID, scratch); err != nil {
			o.Trials = map[string]Trial{}
			return nil // the first error says what is forbidden
		}
		o.Without = WithoutUserNS
	case mayChroot():
		o.Without = WithoutMounts
	}
	return nil
}

// mayChroot says whether this process may change its root: to what it is, with which nothing changes.
func mayChroot() bool { return unix.Chroot("/") == nil }

// TryMounts makes the attempts that need no file system of the caller's, in the
// namespaces of a container with the id map m.
func TryMounts(ctx context.Context, exe string, m userns.Map) (map[string]Trial, error) {
	return startStage(ctx, exe, m, unix.CLONE_NEWPID, "")
}

func startStage(ctx context.Context, exe string, m userns.Map, extra uintptr, scratch string) (map[string]Trial, error) {
	cmd, conn, err := handoff.Command(exe, handoff.Doctor)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := userns.Start(cmd, m, extra); err != nil {
		return nil, err
	}
	handoff.Donated(cmd)
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	trials, err := ask(conn, scratch)
	return trials, errors.Join(err, waitFor(cmd, err))
}

// waitFor reaps the stage; how it ended matters if it had said all.
func waitFor(cmd *exec.Cmd, said error) error {
	if said != nil {
		_ = cmd.Process.Kill()
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("try in a user namespace: %w", err)
	}
	return nil
}

func ask(conn *handoff.Conn, scratch string) (map[string]Trial, error) {
	if err := conn.Send(kindTry, scratch); err != nil {
		return nil, err
	}
	m, err := conn.Expect(kindTried)
	if err != nil {
		return nil, err
	}
	var trials map[string]Trial
	return trials, m.Decode(&trials)
}

// openDevice says why a device cannot be used, nil if it can.
func openDevice(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// readFile returns what a file of /proc holds, "" if it cannot be read: no such
// setting, or /proc is masked.
func readFile(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(data)
}

func field(status, name string) string {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// inRange says whether gid is in a range as ping_group_range has it: "LOW HIGH".
func inRange(bounds string, gid int) bool {
	var low, high int
	if n, err := fmt.Sscan(bounds, &low, &high); n != 2 || err != nil {
		return false
	}
	return low <= gid && gid <= high
}

// freeIDs returns the first id from 100000 on that lies behind all grants in the format of subuid(5), as useradd gives them out.
func freeIDs(grants string) uint32 {
	next := uint64(100000)
	for line := range strings.Lines(grants) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 32)
		size, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil {
			next = max(next, start+size)
		}
	}
	return uint32(next)
}
