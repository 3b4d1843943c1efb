package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
)

// forced are the rungs that an ordinary machine is not found to stand on, by the flags that put a container there, and who can.
var forced = []struct {
	flags, words string
	root         bool
}{
	{"", "", false},
	{"", "", true},
	{"--without fuse", "without FUSE", false},
	{"--storage copy", "without FUSE and overlayfs", false},
	{"--without proc,sys,tun", "masked, without TUN", false},
	{"--without pivot", "without pivot_root", false},
	{"--without userns", "without user namespaces", true},
	{"--without mounts", "without namespaces and mounts", true},
}

// hostRows runs the job on this machine itself.
func (w *finder) hostRows() error {
	names := strings.Split(w.users, ",")
	if len(names) != 2 {
		return fmt.Errorf("-users %s: want two names", w.users)
	}
	people := []struct{ name, words string }{{names[0], "user with subordinate ids"}, {names[1], "user without"}, {"root", "root"}}
	for _, f := range forced {
		for _, p := range people {
			if f.root != (p.name == "root") {
				continue
			}
			words := "this machine"
			if f.words != "" {
				words += ", " + f.words + " (`" + f.flags + "`)"
			}
			onHost := func(r *row) error { return w.onHost(r, p.name) }
			if err := w.row(row{Words: words, Who: p.words, Flags: f.flags, user: p.name, alone: f.flags != ""}, onHost); err != nil {
				return err
			}
		}
	}
	return nil
}

// onHost runs the job as a user of this machine, with a home of its own.
func (w *finder) onHost(r *row, name string) (err error) {
	who, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("%w: make one with: useradd --create-home %s", err, name)
	}
	uid, err := strconv.Atoi(who.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(who.Gid)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(w.work, "host-")
	if err != nil {
		return err
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	// In a mount namespace of its own urun is where the job looks for it. Root of the job is root of the machine.
	return r.job(exec.Command("unshare", "--mount", "sh", "-ec",
		ownCgroups+`mkdir -p "$1/bin"; cp "$2" "$1/bin/urun"; cp -a "$3" "$1/image"; chmod -R a+rX "$1/image" "$1/bin"; exec setpriv --reuid "$4" --regid "$5" --clear-groups `+
			`env -i USER="$6" PATH="$1/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" JOB_HOME="$1/home" JOB_RUN="$1/run" JOB_IMAGE="$1/image" JOB_FLAGS="$7" JOB_ALONE="$9" TMPDIR="$1" "$8"`,
		"sh", dir, w.binary, w.image, who.Uid, who.Gid, name, r.Flags, w.script, map[bool]string{true: "1"}[r.alone]))
}
