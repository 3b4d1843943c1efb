// Package ladder finds the rung on which a container can stand on this machine:
// which of the things that a container is made of the kernel allows here. Nothing is
// asked of the user and nothing degrades in silence: every rung below the highest
// has a sentence that the command prints.
//
// On an ordinary machine the question is answered by looking (two devices, and what is mounted
// below /proc and /sys), in less than a tenth of a millisecond. Where that looks as if this were the
// inside of another container, or there is no TUN, the attempt decides: package doctor makes it in a
// namespace, and its results are kept until the machine or the container around us is another one.
package ladder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/doctor"
	"github.com/urun-dev/urun/userns"
)

// Things that a container can do without, as --without names them.
const (
	Proc = "proc" // a /proc of its own, and with it a pid namespace
	Sys  = "sys"  // a /sys of its own
	TUN  = "tun"  // the device that its network goes by
	Veth = "veth" // what takes that device's place, and with both a network of its own
	Fuse = "fuse" // an image that is served

	Pivot  = "pivot"  // pivot_root(2); init finds out by itself whether it can be had
	UserNS = "userns" // a user namespace; root alone can do without
	Mounts = "mounts" // mounts of its own, without a user namespace
)

// Things lists all of them.
func Things() []string { return []string{Proc, Sys, TUN, Veth, Fuse, Pivot, UserNS, Mounts} }

// WithoutUserNS says whether containers are to do without a user namespace, with the reason: where none can be
// had, or that is asked for. Only root can: everybody else gets the error of making one.
func WithoutUserNS(without []string) (bool, error) {
	asked := slices.Contains(without, UserNS) || slices.Contains(without, Mounts)
	if os.Geteuid() != 0 {
		if asked {
			return false, errors.New("--without userns: only root can do without a user namespace")
		}
		return false, nil
	}
	return asked || userns.Refused() != nil, nil
}

// Options are what Assess works with.
type Options struct {
	Exe   string     // this binary
	Map   userns.Map // of the container
	Cache string     // the file that results of attempts are kept in
	Log   *slog.Logger
	// Without are things to do without although they may be there, for tests.
	Without []string
}

// Lacks are the things that this machine does not give.
type Lacks map[string]bool

// Assess finds out what is lacking. The error is one of looking; a machine that forbids
// everything is no error.
func Assess(ctx context.Context, o Options) (Lacks, error) {
	l := Lacks{}
	for _, name := range o.Without {
		if !slices.Contains(Things(), name) {
			return nil, fmt.Errorf("--without %s: must be one of %s", name, strings.Join(Things(), ", "))
		}
		l[name] = true
	}
	for dev, name := range map[string]string{"/dev/net/tun": TUN, "/dev/fuse": Fuse} {
		if unix.Access(dev, unix.R_OK|unix.W_OK) != nil {
			l[name] = true
		}
	}
	if !o.Map.Outer {
		// Mounts are then had in the user namespace.
		delete(l, UserNS)
		delete(l, Mounts)
	} else if l[UserNS] = true; !userns.MayMount() {
		l[Mounts] = true
	}
	if l[Mounts] {
		return l, nil // nothing else matters
	}
	mounts := readMounts()
	plain := mounts.plain("/proc", "proc", emptyBelowProc) && mounts.plain("/sys", "sysfs", emptyBelowSys)
	if plain && !l[TUN] {
		return l, nil
	}
	trials, err := attempts(ctx, o, mounts)
	if err != nil {
		return nil, err
	}
	if l[TUN] && trials[doctor.TrialVeth].Failed() {
		l[Veth] = true
	}
	if plain {
		return l, nil
	}
	for name, trial := range map[string]string{Proc: doctor.TrialProc, Sys: doctor.TrialSysfs, Fuse: doctor.TrialFuse} {
		if t := trials[trial]; t.Errno == unix.EPERM {
			l[name] = true
		}
	}
	return l, nil
}
