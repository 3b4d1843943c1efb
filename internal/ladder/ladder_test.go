package ladder

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
)

const host = `22 27 0:21 / /proc rw,nosuid - proc proc rw
23 27 0:22 / /sys rw,nosuid - sysfs sysfs rw
24 23 0:6 / /sys/kernel/security rw - securityfs securityfs rw
25 23 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
26 22 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
27 1 254:0 / / rw - ext4 /dev/vda rw
`

const docker = `100 99 0:50 / / rw - overlay overlay rw
101 100 0:51 / /proc rw - proc proc rw
102 100 0:52 / /sys ro - sysfs sysfs ro
103 101 0:51 /bus /proc/bus ro - proc proc rw
104 101 0:53 / /proc/acpi ro - tmpfs tmpfs ro
105 102 0:54 / /sys/firmware ro - tmpfs tmpfs ro
`

func TestMasksAreSeen(t *testing.T) {
	for _, c := range []struct {
		name, text string
		proc, sys  bool
	}{
		{"an ordinary machine", host, true, true},
		{"inside docker", docker, false, false},
		{"no /proc", "", false, false},
		{"/proc over /proc", host + "90 22 0:21 / /proc rw - tmpfs x rw\n", false, true},
		{"a part of /proc", strings.Replace(host, "0:21 / /proc", "0:21 /1 /proc", 1), false, true},
		{"not below", host + "90 27 0:9 / /process rw - tmpfs x rw\n", true, true},
	} {
		m := parseMounts(c.text)
		if got := m.plain("/proc", "proc", emptyBelowProc); got != c.proc {
			t.Errorf("%s: /proc plain: %v", c.name, got)
		}
		if got := m.plain("/sys", "sysfs", emptyBelowSys); got != c.sys {
			t.Errorf("%s: /sys plain: %v", c.name, got)
		}
	}
}

func TestWithoutNamesThings(t *testing.T) {
	o := Options{Log: slog.New(slog.DiscardHandler), Cache: filepath.Join(t.TempDir(), "probe.json"), Without: []string{"air"}}
	if _, err := Assess(context.Background(), o); err == nil || !strings.Contains(err.Error(), "proc, sys, tun, veth, fuse, pivot, userns, mounts") {
		t.Errorf("%v", err)
	}
}
