package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/userns"
)

// healthy is a machine on which everything works.
func healthy() *Observation {
	o := &Observation{
		Kernel: "6.1.0", User: "alice", FreeIDs: 231072,
		Map:     userns.Map{UIDs: []userns.Range{{Container: 0, Host: 1000, Size: 1}, {Container: 1, Host: 100000, Size: 65536}}},
		Trials:  map[string]Trial{},
		Devices: map[string]error{}, PingRange: "0 2147483647", InPingRange: true, FirstFreePort: "1024",
		Cgroups:   cgdelegate.Support{Way: cgdelegate.UserManager, Controllers: []string{"cpu", "cpuset", "io", "memory", "pids"}},
		Linger:    true,
		Store:     Store{Dir: "/home/alice/.local/share/urun", Type: "ext4", FreeBytes: 1 << 40, FreeInodes: 1 << 20},
		OpenFiles: 1024, OpenFilesLimit: 524288,
	}
	o.Map.GIDs = o.Map.UIDs
	return o
}

func failed(errno unix.Errno) Trial { return trialOf(fmt.Errorf("try: %w", errno)) }

func one() userns.Map {
	r := []userns.Range{{Container: 0, Host: 1000, Size: 1}}
	return userns.Map{UIDs: r, GIDs: r, Note: "single id: alice has no subordinate uids"}
}

func TestAHealthyMachineIsOK(t *testing.T) {
	for _, f := range Diagnose(healthy()) {
		if f.Status != OK || f.Detail == "" {
			t.Errorf("%+v", f)
		}
	}
}

// Each fault is found by the check that it belongs to, with words that tell it
// from others of the same errno, and with a cure or a line for the administrator.
func TestFaultsAreToldApart(t *testing.T) {
	noSpace := &userns.Error{Op: "create a user namespace", Err: unix.ENOSPC, Cure: "as root: sysctl -w user.max_user_namespaces=15000"}
	for _, c := range []struct {
		fault  string
		inject func(*Observation)
		check  string
		status Status
		says   string // in the detail
		cures  string // in the cure or the line for the administrator
	}{
		{"user namespaces are used up", func(o *Observation) { o.NamespaceErr = noSpace }, "user namespace", Missing, "create a user namespace", "sysctl -w user.max_user_namespaces"},
		{"user namespaces are forbidden to root, mounts are not", func(o *Observation) { o.NamespaceErr, o.Without = noSpace, WithoutUserNS }, "user namespace", Degraded, "root of this job", "sysctl -w user.max_user_namespaces"},
		{"user namespaces and mounts are forbidden to root", func(o *Observation) { o.NamespaceErr, o.Without = noSpace, WithoutMounts }, "user namespace", Degraded, "chroot", "sysctl -w user.max_user_namespaces"},
		{"neither FUSE nor overlayfs", func(o *Observation) {
			o.Devices["/dev/fuse"], o.Trials[TrialOverlay] = fs.ErrNotExist, failed(unix.EINVAL)
		}, "writable layer", Degraded, "copy of its image", "URUN_ROOT"},
		{"newuidmap has no power", func(o *Observation) {
			o.MapErr, o.HelperErr = nil, &userns.Error{Op: "use newuidmap", Err: errors.New("not setuid"), Cure: "as root: setcap cap_setuid+ep"}
			o.Map = one()
		}, "subordinate ids", Degraded, "single id", "setcap"},
		{"newuidmap is not installed", func(o *Observation) {
			o.HelperErr = &userns.Error{Op: "find newuidmap", Err: errors.New("not found"), Cure: "install the package uidmap"}
			o.Map = one()
		}, "subordinate ids", Degraded, "single id", "uidmap"},
		{"no subordinate ids", func(o *Observation) { o.Map = one() }, "subordinate ids", Degraded, "no subordinate uids", "usermod --add-subuids 231072-296607 --add-subgids 231072-296607 alice"},
		{"a namespace behind seccomp", func(o *Observation) { o.Filtered, o.Trials[TrialMountNS] = true, failed(unix.EPERM) }, "namespaces", Missing, "seccomp", "seccomp=unconfined"},
		{"a namespace behind a security module", func(o *Observation) { o.Trials[TrialNet] = failed(unix.EACCES) }, "namespaces", Missing, "security module", "dmesg"},
		{"too many network namespaces", func(o *Observation) { o.Trials[TrialNet] = failed(unix.ENOSPC) }, "namespaces", Missing, "too many", "user.max_net_namespaces"},
		{"an old kernel", func(o *Observation) { o.Trials[TrialTmpfs] = failed(unix.ENOSYS) }, "mounts", Missing, "this kernel has it not", "Linux 5.10"},
		{"mounts behind seccomp", func(o *Observation) { o.Filtered, o.Trials[TrialTmpfs] = true, failed(unix.EPERM) }, "mounts", Missing, "seccomp", "seccomp=unconfined"},
		{"a masked /proc", func(o *Observation) { o.Trials[TrialProc] = failed(unix.EPERM) }, "/proc", Degraded, "masked", "systempaths=unconfined"},
		{"a masked /sys", func(o *Observation) { o.Trials[TrialSysfs] = failed(unix.EPERM) }, "/sys", Degraded, "masked", "systempaths=unconfined"},
		{"no /dev/fuse", func(o *Observation) { o.Devices["/dev/fuse"] = fs.ErrNotExist }, "image layers", Degraded, "unpacked in the store", "modprobe fuse"},
		{"the fuse module is not there", func(o *Observation) { o.Trials[TrialFuse] = failed(unix.ENODEV) }, "image layers", Missing, "not loaded", "modprobe fuse"},
		{"no overlayfs", func(o *Observation) { o.Trials[TrialOverlay] = failed(unix.ENODEV) }, "writable layer", Degraded, "overlayfs", "modprobe overlay"},
		{"overlayfs for the host's root alone", func(o *Observation) { o.Trials[TrialOverlay] = failed(unix.EPERM) }, "writable layer", Degraded, "user namespaces", "Linux 5.11"},
		{"mount_setattr behind seccomp", func(o *Observation) { o.Filtered, o.Trials[TrialAttr] = true, failed(unix.EPERM) }, "mounts", Missing, "seccomp", "seccomp=unconfined"},
		{"no mount_setattr", func(o *Observation) { o.Trials[TrialAttr] = failed(unix.ENOSYS) }, "mounts", OK, "by remounting", ""},
		{"a store without xattrs", func(o *Observation) {
			o.Store.Type = "nfs"
			o.Trials[TrialXattr], o.Trials[TrialOverlay] = failed(unix.EOPNOTSUPP), failed(unix.EINVAL)
		}, "writable layer", Degraded, "nfs", "URUN_ROOT"},
		{"pivot_root behind seccomp", func(o *Observation) { o.Filtered, o.Trials[TrialPivot] = true, failed(unix.EPERM) }, "root change", Degraded, "seccomp", "seccomp=unconfined"},
		{"no seccomp", func(o *Observation) { o.Trials[TrialSeccomp] = failed(unix.EINVAL) }, "seccomp", Missing, "try", "seccomp=unconfined"},
		{"no TUN device", func(o *Observation) { o.Devices["/dev/net/tun"] = fs.ErrPermission }, "network", Degraded, "a packet socket take its place", "modprobe tun"},
		{"no TUN device and no veth pair", func(o *Observation) {
			o.Devices["/dev/net/tun"], o.Trials[TrialVeth] = fs.ErrPermission, failed(unix.EOPNOTSUPP)
		}, "network", Degraded, "share this machine's network", "modprobe tun"},
		{"ping is forbidden", func(o *Observation) { o.InPingRange, o.PingRange = false, "1 0" }, "ping", Degraded, `"1 0"`, "ping_group_range"},
		{"no cgroup", func(o *Observation) {
			o.Cgroups = cgdelegate.Support{Way: cgdelegate.None, Reason: "no bus", Err: &cgdelegate.UnavailableError{Cause: cgdelegate.NoBus, Err: errors.New("no bus"), Cure: "log in by ssh"}}
		}, "limits", Degraded, "no bus", "log in by ssh"},
		{"no memory controller", func(o *Observation) { o.Cgroups.Controllers = []string{"cpu", "pids"} }, "limits", Degraded, "not delegated: memory", "delegate.conf"},
		{"the session ends with the user", func(o *Observation) { o.HasSystemd, o.Linger = true, false }, "linger", Degraded, "last session", "enable-linger"},
		{"a store that cannot be written", func(o *Observation) { o.Store.fail(unix.EROFS) }, "store", Missing, "read-only", "--root"},
		{"a full disk", func(o *Observation) { o.Store.FreeBytes = 5 << 20 }, "store", Degraded, "5 MB", "prune"},
		{"an inode quota", func(o *Observation) { o.Store.FreeInodes = 12 }, "store", Degraded, "12 inodes", "prune"},
		{"few open files", func(o *Observation) { o.OpenFilesLimit = 256 }, "open files", Degraded, "256", "limits.d"},
	} {
		t.Run(c.fault, func(t *testing.T) {
			o := healthy()
			c.inject(o)
			all := Diagnose(o)
			if Works(all) == (c.status == Missing) {
				t.Errorf("works: %v", Works(all))
			}
			for _, f := range all {
				if f.Check != c.check {
					continue
				}
				if f.Status != c.status || !strings.Contains(f.Detail, c.says) || !strings.Contains(f.Cure+"\n"+f.Admin, c.cures) {
					t.Errorf("got %+v", f)
				}
				return
			}
			t.Errorf("no check %q", c.check)
		})
	}
}

func TestInitramfsRootIsNoFault(t *testing.T) {
	o := healthy()
	o.Trials[TrialPivot] = failed(unix.EINVAL)
	for _, f := range Diagnose(o) {
		if f.Status != OK {
			t.Errorf("%+v", f)
		}
	}
}

func TestFreeIDsLieBehindAllGrants(t *testing.T) {
	for _, c := range []struct {
		grants string
		want   uint32
	}{
		{"", 100000},
		{"alice:100000:65536\nbob:165536:65536\n", 231072},
		{"# comment\nalice:1:2:3\nalice:500:10\n", 100000},
	} {
		if got := freeIDs(c.grants); got != c.want {
			t.Errorf("%q: %d, want %d", c.grants, got, c.want)
		}
	}
}

func TestPingRange(t *testing.T) {
	for _, c := range []struct {
		bounds string
		gid    int
		want   bool
	}{{"0 100", 100, true}, {"0 100", 101, false}, {"1 0", 0, false}, {"", 0, false}} {
		if got := inRange(c.bounds, c.gid); got != c.want {
			t.Errorf("%q %d: %v", c.bounds, c.gid, got)
		}
	}
}
