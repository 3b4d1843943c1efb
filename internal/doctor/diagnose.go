package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/cure"
)

// Diagnose says what the facts mean, one finding for each check and in the order
// in which a container needs the things.
func Diagnose(o *Observation) []Finding {
	var out []Finding
	for _, check := range []struct {
		name string
		find func(*Observation) Finding
	}{
		{"user namespace", userNamespace},
		{"subordinate ids", subordinateIDs},
		{"namespaces", namespaces},
		{"mounts", mounts},
		{"/proc", procFS},
		{"/sys", sysFS},
		{"image layers", imageLayers},
		{"writable layer", writableLayer},
		{"root change", rootChange},
		{"seccomp", seccompFilters},
		{"network", Network},
		{"ping", ping},
		{"ports", ports},
		{"limits", limits},
		{"linger", linger},
		{"store", store},
		{"open files", openFiles},
	} {
		f := check.find(o)
		f.Check = check.name
		out = append(out, f)
	}
	return out
}

// Lines for administrators that several findings share.
const (
	adminSeccomp  = "start the outer container with --security-opt seccomp=unconfined (docker, podman), or seccompProfile: {type: Unconfined} (Kubernetes)"
	adminUnmask   = "start the outer container with --security-opt systempaths=unconfined (docker), --security-opt unmask=ALL (podman), or procMount: Unmasked (Kubernetes)"
	adminDelegate = "mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' >/etc/systemd/system/user@.service.d/delegate.conf && " +
		"systemctl daemon-reload # it holds for user managers that are started from then on"
)

func ok(format string, args ...any) Finding {
	return Finding{Status: OK, Detail: fmt.Sprintf(format, args...)}
}

// unknown is for what could not be tried since there is no user namespace: that
// finding stands already, with its cure.
func unknown() Finding {
	return Finding{Status: Degraded, Detail: "not tried: it needs a user namespace"}
}

// unknown says that nothing could be tried in a namespace, not even in those of a container without a user namespace.
func (o *Observation) unknown() bool { return o.NamespaceErr != nil && o.Without != WithoutUserNS }

// unmounted says that no mounts could be tried, for want of a mount namespace.
func (o *Observation) unmounted() bool { return o.Trials[TrialMountNS].Failed() }

// unmounted is for what it keeps from being tried: that finding stands already.
func unmounted() Finding {
	return Finding{Status: Degraded, Detail: "not tried: it needs a mount namespace"}
}

// curedBy puts the hint of an error where it belongs: what begins with "as root:"
// is for the administrator.
func curedBy(f Finding, err error) Finding {
	var h interface{ Hint() string }
	if !errors.As(err, &h) {
		return f
	}
	if line, ok := strings.CutPrefix(h.Hint(), "as root: "); ok {
		f.Admin = line
	} else {
		f.Cure = h.Hint()
	}
	return f
}

// countedAs is the name of a kind of namespaces in the sysctls that limit them.
var countedAs = map[string]string{
	TrialPID: "pid", TrialMountNS: "mnt", TrialUTS: "uts", TrialIPC: "ipc", TrialNet: "net", TrialCgroupNS: "cgroup",
}

// forbidden is a failed attempt with what the errno tells of its cause.
func (o *Observation) forbidden(what string, t Trial) Finding {
	f := Finding{Status: Missing, Detail: what + ": " + t.Error}
	switch kind := countedAs[what]; {
	case t.Errno == unix.ENOSPC && kind != "":
		f.Detail += " (too many are in use, or more than 32 are nested)"
		f.Admin = "sysctl -w user.max_" + kind + "_namespaces=15000 # and a line in /etc/sysctl.d to keep it"
	case t.Errno == unix.ENOSYS:
		f.Detail += " (this kernel has it not, or a seccomp filter hides it)"
		f.Admin = "a kernel from Linux 5.10 on; or " + adminSeccomp
	case (t.Errno == unix.EPERM || t.Errno == unix.EACCES) && o.Filtered:
		f.Detail += " (the seccomp filter around this process)"
		f.Admin = adminSeccomp
	case t.Errno == unix.EPERM || t.Errno == unix.EACCES:
		f.Detail += " (a security module)"
		f.Admin = "look for DENIED in the kernel's log: dmesg | grep -i -e apparmor -e avc"
	}
	return f
}

// UserNamespace tells what isolates a container's root from this machine's.
func UserNamespace(o *Observation) Finding { return userNamespace(o) }

func userNamespace(o *Observation) Finding {
	err := o.NamespaceErr
	if err == nil && o.HelperErr == nil {
		err = o.MapErr
	}
	switch {
	case err == nil:
	case o.Without == WithoutUserNS:
		return curedBy(Finding{Status: Degraded, Detail: err.Error() + "; root in a container is root of this job"}, err)
	case o.Without == WithoutMounts:
		return curedBy(Finding{Status: Degraded, Detail: err.Error() + "; a container is a chroot, without namespaces, /proc and volumes"}, err)
	default:
		return curedBy(Finding{Status: Missing, Detail: err.Error()}, err)
	}
	return ok("can be made; Linux %s", o.Kernel)
}

func subordinateIDs(o *Observation) Finding {
	switch {
	case o.MapErr != nil:
		return curedBy(Finding{Status: Missing, Detail: o.MapErr.Error()}, o.MapErr)
	case !o.Map.Single():
		return ok("%s", o.Map)
	}
	if o.Map.Note == "" {
		return Finding{
			Status: Degraded, Detail: "the user namespace around this process has one id: files can belong to one user only, and programs that change to another fail",
			Cure: "make that namespace with more: unshare --map-auto, or newuidmap",
		}
	}
	f := Finding{Status: Degraded, Detail: o.Map.Note + ": files can belong to one user only, and programs that change to another fail"}
	if o.HelperErr != nil {
		return curedBy(f, o.HelperErr)
	}
	f.Admin = fmt.Sprintf("usermod --add-subuids %[1]d-%[2]d --add-subgids %[1]d-%[2]d %[3]s", o.FreeIDs, o.FreeIDs+65535, cure.Quote(o.User))
	return f
}

func namespaces(o *Observation) Finding {
	if o.unknown() {
		return unknown()
	}
	for _, name := range []string{TrialPID, TrialMountNS, TrialUTS, TrialIPC, TrialNet, TrialCgroupNS} {
		if t := o.Trials[name]; t.Failed() {
			return o.forbidden(name, t)
		}
	}
	return ok("pid, mnt, uts, ipc, net, cgroup")
}

func mounts(o *Observation) Finding {
	if o.unknown() {
		return unknown()
	}
	if o.unmounted() {
		return unmounted()
	}
	for _, name := range []string{TrialPrivate, TrialTmpfs, TrialDevpts, TrialBind} {
		if t := o.Trials[name]; t.Failed() {
			return o.forbidden(name, t)
		}
	}
	switch t := o.Trials[TrialAttr]; {
	case t.Errno == unix.ENOSYS:
		return ok("tmpfs, devpts, binds; made read-only by remounting: no mount_setattr here (Linux 5.12)")
	case t.Failed():
		return o.forbidden("mount_setattr", t)
	}
	return ok("tmpfs, devpts, binds")
}

func procFS(o *Observation) Finding {
	t := o.Trials[TrialProc]
	switch {
	case o.unknown():
		return unknown()
	case o.unmounted():
		return unmounted()
	case !t.Failed():
		return ok("can be mounted")
	case t.Errno == unix.EPERM && !o.Trials[TrialTmpfs].Failed():
		// mount_too_revealing: what is mounted over parts of the outer /proc must
		// not be uncovered by a new one.
		return Finding{
			Status: Degraded, Detail: "no new /proc can be mounted: parts of this machine's are masked, as inside another container; containers share it, and its pid namespace",
			Admin: adminUnmask,
		}
	}
	return o.forbidden("proc", t)
}

func sysFS(o *Observation) Finding {
	t := o.Trials[TrialSysfs]
	switch {
	case o.unknown():
		return unknown()
	case o.unmounted():
		return unmounted()
	case !t.Failed():
		return ok("can be mounted")
	case t.Errno == unix.EPERM && !o.Trials[TrialTmpfs].Failed():
		return Finding{
			Status: Degraded, Detail: "no new /sys can be mounted: parts of this machine's are masked, as inside another container; containers share it",
			Admin: adminUnmask,
		}
	}
	return o.forbidden("sysfs", t)
}

// unserved is what is done where an image cannot be served: slower the first time, and its size on disk.
const unserved = "images are unpacked in the store"

// ImageLayers tells how a container gets its image's files.
func ImageLayers(o *Observation) Finding { return imageLayers(o) }

func imageLayers(o *Observation) Finding {
	if o.Without == WithoutMounts {
		return Finding{Status: Degraded, Detail: "a container is a copy of its image, for want of mounts"}
	}
	if o.Devices["/dev/fuse"] != nil {
		f := o.device("/dev/fuse", unserved)
		f.Status = Degraded
		return f
	}
	t := o.Trials[TrialFuse]
	switch {
	case o.unknown():
		return unknown()
	case o.unmounted():
		return unmounted()
	case t.Errno == unix.ENODEV:
		return Finding{Status: Missing, Detail: t.Error + " (the fuse module is not loaded)", Admin: "modprobe fuse"}
	case t.Failed():
		return o.forbidden("fuse", t)
	}
	return ok("served by FUSE")
}

// device is what a device that cannot be opened means.
func (o *Observation) device(name, effect string) Finding {
	err := o.Devices[name]
	return Finding{Status: Missing, Detail: fmt.Sprintf("%v: %s", err, effect), Admin: o.deviceCure(name)}
}

// deviceCure makes a device one that everybody can open.
func (o *Observation) deviceCure(name string) string {
	err, inContainer := o.Devices[name], " # for the inside of a container: start it with --device "+name
	switch {
	case errors.Is(err, unix.EPERM):
		// The device cgroup: open(2) does not give it for a mode.
		return "start the outer container with --device " + name
	case errors.Is(err, unix.EACCES):
		return "chmod 666 " + name
	case errors.Is(err, fs.ErrNotExist) && o.Drivers[name]:
		minor := map[string]string{"/dev/fuse": "229", "/dev/net/tun": "200"}[name] // the kernel's devices.txt
		return "mkdir -p " + path.Dir(name) + " && mknod -m 666 " + name + " c 10 " + minor + inContainer
	}
	return "modprobe " + path.Base(name) + " && chmod 666 " + name + inContainer
}

// instead begins the finding where the kernel's overlayfs can not be used: the
// layer is merged by the union of package fuseunion then, which is slower.
const instead = "fuse: urun's own union; "

// WritableLayer tells how a container's writable layer is merged with its image.
func WritableLayer(o *Observation) Finding { return writableLayer(o) }

func writableLayer(o *Observation) Finding {
	t := o.Trials[TrialOverlay]
	if o.Without == WithoutMounts {
		return Finding{Status: Degraded, Detail: "copy: a container is a copy of its image, for want of mounts"}
	}
	switch {
	case o.unknown():
		return unknown()
	case o.Store.Err != nil:
		return Finding{Status: Degraded, Detail: "not tried: it needs a store"}
	case o.unmounted():
		return unmounted()
	case !t.Failed():
		return ok("overlay: the kernel's overlayfs on %s", o.Store.Type)
	case o.Devices["/dev/fuse"] != nil:
		// Whatever the reason: urun's own union is not to be had either.
		return Finding{
			Status: Degraded, Detail: fmt.Sprintf("copy: a container is a copy of its image: %s", t.Error),
			Cure: cure.Elsewhere + " # if that is on ext4, xfs, btrfs or tmpfs", Admin: o.deviceCure("/dev/fuse"),
		}
	case t.Errno == unix.ENODEV:
		return Finding{Status: Degraded, Detail: instead + "no overlayfs: " + t.Error, Admin: "modprobe overlay"}
	case o.Trials[TrialXattr].Failed():
		return Finding{
			Status: Degraded, Detail: instead + fmt.Sprintf("the store's file system (%s) has no user.* attributes, which overlayfs needs", o.Store.Type),
			Cure: cure.Elsewhere + " # if that is on a local disk",
		}
	case t.Errno == unix.EPERM && o.Filtered:
		return o.forbidden("overlayfs", t)
	case t.Errno == unix.EPERM:
		return Finding{
			Status: Degraded, Detail: instead + "this kernel has no overlayfs for user namespaces: " + t.Error,
			Admin: "a kernel from Linux 5.11 on",
		}
	}
	return Finding{
		Status: Degraded, Detail: instead + fmt.Sprintf("overlayfs does not take the store's file system (%s): %s", o.Store.Type, t.Error),
		Cure: cure.Elsewhere + " # if that is on ext4, xfs, btrfs or tmpfs",
	}
}

func rootChange(o *Observation) Finding {
	t := o.Trials[TrialPivot]
	switch {
	case o.unknown():
		return unknown()
	case t.Errno == unix.EINVAL:
		return ok("by moving the mount: / is the initramfs, which pivot_root refuses")
	case t.Errno == unix.EPERM:
		f := o.forbidden("pivot_root", t)
		f.Status, f.Detail = Degraded, f.Detail+": the container's root is moved over the outer one, which stays below it"
		return f
	case t.Failed():
		return o.forbidden("pivot_root", t)
	}
	return ok("pivot_root")
}

func seccompFilters(o *Observation) Finding {
	t := o.Trials[TrialSeccomp]
	switch {
	case o.unknown():
		return unknown()
	case t.Failed():
		return Finding{Status: Missing, Detail: t.Error, Cure: "urun run --security-opt seccomp=unconfined", Admin: "a kernel with CONFIG_SECCOMP_FILTER"}
	}
	return ok("filters can be installed")
}

// Network tells what would carry a container's traffic.
func Network(o *Observation) Finding {
	if o.Without == WithoutMounts {
		return Finding{Status: Degraded, Detail: "containers share this job's network, and publish no ports"}
	}
	if o.Devices["/dev/net/tun"] != nil {
		effect := "a veth pair and a packet socket take its place"
		if t := o.Trials[TrialVeth]; t.Failed() {
			effect = "containers share this machine's network, and publish no ports (in its place: " + t.Error + ")"
		}
		f := o.device("/dev/net/tun", effect)
		f.Status = Degraded
		return f
	}
	t := o.Trials[TrialTUN]
	switch {
	case o.unknown():
		return unknown()
	case t.Failed():
		f := o.forbidden("network", t)
		f.Cure = "urun run --network=host, or --network=none"
		return f
	}
	if t := o.Trials[TrialRedirect]; t.Failed() {
		return ok("driver netstack: user-mode TCP/IP on a TUN device; not kernel: %s", t.Error)
	}
	return ok("driver kernel: TCP spliced between kernel sockets, the rest on a TUN device")
}

func ping(o *Observation) Finding {
	if o.InPingRange {
		return ok("echo requests go out")
	}
	return Finding{
		Status: Degraded, Detail: fmt.Sprintf("containers cannot ping: net.ipv4.ping_group_range is %q", o.PingRange),
		Admin: `sysctl -w net.ipv4.ping_group_range="0 2147483647" # and a line in /etc/sysctl.d to keep it`,
	}
}

func ports(o *Observation) Finding {
	f := ok("can be published from %s on", o.FirstFreePort)
	if o.FirstFreePort == "" {
		return ok("can be published from 1024 on")
	}
	if o.FirstFreePort == "1024" {
		f.Admin = "sysctl -w net.ipv4.ip_unprivileged_port_start=80 # for lower ones"
	}
	return f
}

func limits(o *Observation) Finding {
	s := o.Cgroups
	if s.Way == cgdelegate.None || len(s.Controllers) == 0 {
		return curedBy(Finding{Status: Degraded, Detail: "containers cannot be limited: " + s.Reason}, s.Err)
	}
	var lacking []string
	basic := true
	for _, c := range []string{"memory", "cpu", "pids", "cpuset", "io"} {
		if !strings.Contains(" "+strings.Join(s.Controllers, " ")+" ", " "+c+" ") {
			lacking = append(lacking, c)
			basic = basic && (c == "cpuset" || c == "io")
		}
	}
	f := ok("%s (%s)", strings.Join(s.Controllers, " "), s.Way)
	if len(lacking) > 0 {
		f.Detail += "; not delegated: " + strings.Join(lacking, " ")
		if s.Way == cgdelegate.UserManager {
			f.Admin = adminDelegate
		}
	}
	if !basic {
		f.Status = Degraded
	}
	return f
}

func linger(o *Observation) Finding {
	switch {
	case !o.HasSystemd:
		return ok("no systemd that would end processes with a session")
	case o.Linger:
		return ok("detached containers outlive the session")
	}
	return Finding{
		Status: Degraded, Detail: "detached containers end with the last process of your last session",
		Cure: "loginctl enable-linger", Admin: "loginctl enable-linger " + o.User,
	}
}

func store(o *Observation) Finding {
	s := o.Store
	switch {
	case s.Err != nil:
		return Finding{Status: Missing, Detail: fmt.Sprintf("%s: %v", s.Dir, s.Err), Cure: s.Cure}
	case s.FreeBytes < 1<<30:
		return Finding{Status: Degraded, Detail: fmt.Sprintf("%s: %d MB are free", s.Dir, s.FreeBytes>>20), Cure: cure.Elsewhere + " # if that is a larger disk; or make room: urun image prune"}
	case !s.NoInodes && s.FreeInodes < 10000:
		return Finding{Status: Degraded, Detail: fmt.Sprintf("%s: %d inodes are free", s.Dir, s.FreeInodes), Cure: cure.Elsewhere + " # if that is another disk; or make room: urun image prune"}
	}
	return ok("%s on %s", s.Dir, s.Type)
}

func openFiles(o *Observation) Finding {
	if o.OpenFilesLimit < 4096 {
		return Finding{
			Status: Degraded, Detail: fmt.Sprintf("a process may have %d files open: few for servers in containers", o.OpenFilesLimit),
			Admin: "echo " + cure.Quote(o.User+" hard nofile 524288") + " >/etc/security/limits.d/" + cure.Quote(o.User+".conf") + " # it holds from the next login on",
		}
	}
	return ok("%d (at most %d)", o.OpenFiles, o.OpenFilesLimit)
}
