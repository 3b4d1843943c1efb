package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/slirp"
)

// Messages of the stage.
const (
	kindTry   = "try"   // the scratch directory's path
	kindTried = "tried" // a map of Trials
)

// Names of the attempts.
const (
	TrialPID      = "pid namespace"
	TrialMountNS  = "mount namespace"
	TrialUTS      = "uts namespace"
	TrialIPC      = "ipc namespace"
	TrialNet      = "network namespace"
	TrialCgroupNS = "cgroup namespace"
	TrialPrivate  = "private mounts"
	TrialTmpfs    = "tmpfs"
	TrialProc     = "proc"
	TrialSysfs    = "sysfs"
	TrialDevpts   = "devpts"
	TrialBind     = "bind mount"
	TrialAttr     = "mount_setattr"
	TrialFuse     = "fuse"
	TrialOverlay  = "overlay"
	TrialTUN      = "tun"
	TrialVeth     = "veth"
	TrialRedirect = "nftables redirect"
	TrialSeccomp  = "seccomp"
	TrialXattr    = "user xattr"
	TrialPivot    = "pivot_root"
)

// Stage is the main function of the stage that tries. It runs in a new user
// namespace, with all capabilities in it, and ends when it has told the results.
func Stage() {
	// Namespaces are unshared by this thread, for this thread.
	runtime.LockOSThread()
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	m, err := parent.Expect(kindTry)
	if err != nil {
		os.Exit(125)
	}
	var scratch string
	if err := m.Decode(&scratch); err != nil {
		os.Exit(125)
	}
	if err := parent.Send(kindTried, attempt(scratch)); err != nil {
		os.Exit(125)
	}
	os.Exit(0)
}

// attempt makes all attempts, in an order in which those that others need come first.
func attempt(scratch string) map[string]Trial {
	out := map[string]Trial{}
	for _, a := range []struct {
		name string
		run  func() error
	}{
		{TrialMountNS, func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{TrialUTS, func() error { return unix.Unshare(unix.CLONE_NEWUTS) }},
		{TrialIPC, func() error { return unix.Unshare(unix.CLONE_NEWIPC) }},
		{TrialNet, func() error { return unix.Unshare(unix.CLONE_NEWNET) }},
		{TrialCgroupNS, func() error { return unix.Unshare(unix.CLONE_NEWCGROUP) }},
		{TrialPrivate, func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "") }},
		{TrialTmpfs, func() error { return newFilesystem("tmpfs", 0) }},
		{TrialProc, func() error {
			return newFilesystem("proc", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
		}},
		{TrialSysfs, func() error { return newFilesystem("sysfs", unix.MOUNT_ATTR_RDONLY) }},
		{TrialDevpts, func() error { return newFilesystem("devpts", 0) }},
		{TrialBind, bind},
		{TrialAttr, attributes},
		{TrialFuse, fuse},
		{TrialXattr, func() error { return xattr(scratch) }},
		{TrialOverlay, func() error { return overlay(scratch) }},
		{TrialTUN, tun},
		{TrialVeth, veth},
		{TrialRedirect, redirect},
		{TrialSeccomp, seccompFilter},
		// Last: it changes this thread's root.
		{TrialPivot, func() error { return pivot(scratch) }},
	} {
		out[a.name] = trialOf(a.run())
	}
	return out
}

// errNotTried marks an attempt that what came before made impossible.
var errNotTried = errors.New("not tried")

func trialOf(err error) Trial {
	if err == nil || errors.Is(err, errNotTried) {
		return Trial{}
	}
	t := Trial{Error: err.Error()}
	var errno unix.Errno
	if errors.As(err, &errno) {
		t.Errno = errno
	}
	return t
}

// newFilesystem makes a mount that is attached nowhere; the kernel decides about
// a masked /proc or /sys here too (mount_too_revealing).
func newFilesystem(fstype string, attr int) error {
	fd, err := detached(fstype, attr)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func detached(fstype string, attr int) (int, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("create %s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", fstype, err)
	}
	return fd, nil
}

func bind() error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree /dev/null: %w", err)
	}
	return unix.Close(fd)
}

// attributes changes those of a mount that is attached nowhere.
func attributes() error {
	fd, err := detached("tmpfs", 0)
	if err != nil {
		return errNotTried
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

func fuse() error {
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	mnt, err := fuseunion.Mount(dev, fuseunion.MountOptions{})
	if err != nil {
		return err
	}
	return mnt.Close()
}

func xattr(scratch string) error {
	if scratch == "" {
		return errNotTried
	}
	if err := unix.Setxattr(filepath.Join(scratch, "upper"), "user.urun", []byte("1"), 0); err != nil {
		return fmt.Errorf("setxattr: %w", err)
	}
	return nil
}

// overlay tries what the writable layer of a container needs.
func overlay(scratch string) error {
	if scratch == "" {
		return errNotTried
	}
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(ctx)
	for _, dir := range []string{"lower", "upper", "work"} {
		if err := unix.FsconfigSetString(ctx, dir+"dir", filepath.Join(scratch, dir)); err != nil {
			return fmt.Errorf("overlay %sdir: %w", dir, err)
		}
	}
	if err := unix.FsconfigSetFlag(ctx, "userxattr"); err != nil {
		return fmt.Errorf("overlay userxattr: %w", err)
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return fmt.Errorf("create overlay: %w", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return unix.Close(fd)
}

func tun() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("tun0")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make a TUN device: %w", err)
	}
	return nil
}

// veth tries what takes a TUN's place.
func veth() error {
	dev, err := network(slirp.Config{NoTUN: true})
	if err != nil {
		return err
	}
	return dev.Close()
}

// redirect tries the network's best driver, on a TUN or what takes its place.
func redirect() error {
	dev, err := network(slirp.Config{})
	if err != nil {
		dev, err = network(slirp.Config{NoTUN: true})
	}
	if err != nil {
		return errNotTried // the attempts before say why
	}
	defer dev.Close()
	r, err := slirp.PrepareKernel(slirp.Config{}, dev)
	if err != nil {
		return err
	}
	return r.Close()
}

// network sets up a container's network, in a new network namespace, which is this thread's from then on.
func network(cfg slirp.Config) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, errNotTried // the attempt at the namespace says why
	}
	return slirp.Configure(cfg)
}

// seccompFilter asks whether filters can be had, without installing one.
func seccompFilter() error {
	action := uint32(unix.SECCOMP_RET_ERRNO)
	if err := seccompActionAvailable(&action); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

func pivot(scratch string) error {
	if scratch == "" {
		return errNotTried
	}
	fd, err := detached("tmpfs", 0)
	if err != nil {
		return errNotTried
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, filepath.Join(scratch, "lower"), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	if err := unix.Fchdir(fd); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return nil
}
