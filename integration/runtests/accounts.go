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
	"syscall"
	"time"
)

// The users that root tests as.
const (
	withRanges    = "urun-test"
	withoutRanges = "urun-test1"
)

// account is a user whom tests run as.
type account struct {
	name     string
	uid, gid uint32
	ranges   bool // has subordinate ids
	self     bool // is the caller
	home     string
}

func (a *account) String() string { return fmt.Sprintf("%s, %s", a.name, a.kind()) }

func (a *account) kind() string {
	if a.ranges {
		return "subuids"
	}
	return "no-subuids"
}

// env is all of the environment that tests get: what a login would give, and where the things under test are.
// There is no XDG_RUNTIME_DIR, as under su, ssh without PAM, and batch systems.
func (a *account) env(st *stage) []string {
	env := []string{
		"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "SHELL=/bin/sh", "LANG=C.UTF-8",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"TMPDIR=" + filepath.Join(a.home, "tmp"),
		"URUN_BINARY=" + st.bin("urun"), "URUN_PROBE=" + st.bin("probe"), "URUN_DEMO_IMAGE=" + filepath.Join(st.dir, "demo"),
		"URUN_TEST_CACHE=" + testCache(a),
		// Short, so that what should go away does so before the tests' end.
		"URUN_LINGER=" + lingerTime.String(),
	}
	env = append(env, st.env...)
	for _, name := range []string{"CI", "URUN_KILLS", "URUN_SEED", "URUN_STRESS", "URUN_FSOPS", "URUN_SERVICES", "URUN_TEST_SLOW", "URUN_VIRTUAL_HOST", "http_proxy", "https_proxy", "no_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// lingerTime is how long urun may keep something ready after the last container.
const lingerTime = 2 * time.Second

// testCache is where images that take long to make are kept from run to run, for each user its own.
func testCache(a *account) string {
	if a.self {
		if dir, err := os.UserCacheDir(); err == nil {
			return filepath.Join(dir, "urun-test")
		}
	}
	return filepath.Join(os.TempDir(), "urun-test-cache-"+strconv.Itoa(int(a.uid)))
}

func (a *account) credential() *syscall.SysProcAttr {
	if a.self {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: a.uid, Gid: a.gid}}
}

// testAccounts gives the users to test as: the caller, or for root those named, or the two test users.
func testAccounts(names string) ([]*account, error) {
	if os.Getuid() != 0 {
		if names != "" {
			return nil, errors.New("-users: only root can run tests as others")
		}
		a, err := lookup("")
		if err != nil {
			return nil, err
		}
		return []*account{a}, nil
	}
	if err := openDevices(); err != nil {
		return nil, err
	}
	if names == "" {
		names = withRanges + "," + withoutRanges
		for _, name := range []string{withRanges, withoutRanges} {
			if err := ensureUser(name); err != nil {
				return nil, err
			}
		}
	}
	var accounts []*account
	for _, name := range strings.Split(names, ",") {
		a, err := lookup(name)
		if err != nil {
			return nil, err
		}
		accounts = append(accounts, a)
	}
	return accounts, nil
}

func lookup(name string) (*account, error) {
	u, err := user.Current()
	if name != "" {
		u, err = user.Lookup(name)
	}
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	ranges, err := hasRange(u)
	return &account{name: u.Username, uid: uint32(uid), gid: uint32(gid), ranges: ranges, self: name == ""}, err
}

func hasRange(u *user.User) (bool, error) {
	data, err := os.ReadFile("/etc/subuid")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	for line := range strings.Lines(string(data)) {
		owner, _, _ := strings.Cut(line, ":")
		if owner == u.Username || owner == u.Uid {
			return true, nil
		}
	}
	return false, err
}

// ensureUser makes a test user and gives it, or takes from it, its ranges of subordinate ids.
func ensureUser(name string) error {
	if _, err := user.Lookup(name); err != nil {
		var unknown user.UnknownUserError
		if !errors.As(err, &unknown) {
			return err
		}
		// Without a home: each run of the tests has one of its own.
		if err := command("useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/sh", name); err != nil {
			return err
		}
	}
	a, err := lookup(name)
	if err != nil {
		return err
	}
	want := name == withRanges
	switch {
	case want && !a.ranges:
		start, err := freeRange()
		if err != nil {
			return err
		}
		r := fmt.Sprintf("%d-%d", start, start+65535)
		return command("usermod", "--add-subuids", r, "--add-subgids", r, name)
	case !want && a.ranges:
		// useradd gave them by itself.
		return errors.Join(dropRanges("/etc/subuid", name), dropRanges("/etc/subgid", name))
	}
	return nil
}

// freeRange is the first id after all ranges that others have.
func freeRange() (int, error) {
	free := 100000
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		data, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Split(strings.TrimSpace(line), ":")
			if len(fields) != 3 {
				continue
			}
			start, err1 := strconv.Atoi(fields[1])
			count, err2 := strconv.Atoi(fields[2])
			if err := errors.Join(err1, err2); err != nil {
				return 0, fmt.Errorf("%s: %w", file, err)
			}
			free = max(free, start+count)
		}
	}
	return free, nil
}

// dropRanges takes each of a user's ranges away with usermod, which keeps the file's lock.
func dropRanges(file, name string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	flag := map[string]string{"/etc/subuid": "--del-subuids", "/etc/subgid": "--del-subgids"}[file]
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 || fields[0] != name {
			continue
		}
		start, err1 := strconv.Atoi(fields[1])
		count, err2 := strconv.Atoi(fields[2])
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := command("usermod", flag, fmt.Sprintf("%d-%d", start, start+count-1), name); err != nil {
			return err
		}
	}
	return nil
}

// left lists what tests left running as this account, and ends it. What lingers rightly is waited for.
func (a *account) left(st *stage) []string {
	var pids []int
	var names []string
	for end := time.Now().Add(lingerTime + 10*time.Second); ; time.Sleep(50 * time.Millisecond) {
		pids, names = a.processes(st)
		if len(names) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			names = append(names, err.Error())
		}
	}
	return names
}

// processes lists those of the account that run from the stage, are in it or hold files of it open. Others of the
// account's are not the tests'.
func (a *account) processes(st *stage) (pids []int, names []string) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, []string{err.Error()}
	}
	own := ancestors()
	for _, dir := range dirs {
		fi, err := os.Stat(dir)
		if err != nil || fi.Sys().(*syscall.Stat_t).Uid != a.uid || !uses(dir, st.dir) && !uses(dir, st.homes) {
			continue // gone, another's, or not of the tests
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // ending
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return pids, append(names, err.Error())
		}
		if slices.Contains(own, pid) {
			continue
		}
		pids, names = append(pids, pid), append(names, fmt.Sprintf("%d %s", pid, strings.ReplaceAll(string(cmdline), "\x00", " ")))
	}
	return pids, names
}

// ancestors are this process and those that it comes from, which are root's as tests of root's are: in the virtual
// host the one that runs the commands from outside.
func ancestors() []int {
	var all []int
	for pid := os.Getpid(); pid > 1; {
		all = append(all, pid)
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break // it has just ended
		}
		// The name, in parentheses, may have anything in it; behind it are the state and the parent (proc_pid_stat(5)).
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			break
		}
	}
	return all
}

// uses reports whether a process, by its directory of /proc, has to do with files below top.
func uses(dir, top string) bool {
	links, err := filepath.Glob(filepath.Join(dir, "fd", "*"))
	if err != nil {
		return false
	}
	for _, link := range append(links, filepath.Join(dir, "exe"), filepath.Join(dir, "cwd")) {
		if target, err := os.Readlink(link); err == nil && within(target, top) {
			return true
		}
	}
	return false
}

// openDevices gives /dev/fuse and /dev/net/tun the mode that udev gives them, where no udev did.
func openDevices() error {
	for _, dev := range []string{"/dev/fuse", "/dev/net/tun"} {
		fi, err := os.Stat(dev)
		if err != nil {
			return err
		}
		if fi.Mode().Perm() != 0o666 {
			fmt.Printf("opening %s to all users, as udev does\n", dev)
			if err := os.Chmod(dev, 0o666); err != nil {
				return err
			}
		}
	}
	return nil
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
