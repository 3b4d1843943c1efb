package seccomp

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestEmulationAsksOnlyAboutWhatTheKernelRefuses(t *testing.T) {
	for _, goarch := range []string{"amd64", "arm64"} {
		p, err := emulationFor(goarch)
		if err != nil {
			t.Fatal(err)
		}
		native, _, err := nativeABI(goarch)
		if err != nil {
			t.Fatal(err)
		}
		const minus = 1<<32 - 1
		for _, c := range []struct {
			call string
			args []uint64
			want uint32
		}{
			{"geteuid", nil, retNotify},
			{"setresgid", []uint64{0, 0, 0}, retNotify},
			{"statx", nil, retNotify},
			{"fstat", nil, retNotify},
			{"execve", nil, retNotify},
			{"read", nil, retAllow},
			{"openat", nil, retAllow},
			{"fchownat", []uint64{0, 0, 0, 0}, retAllow},
			{"fchownat", []uint64{0, 0, minus, 0}, retAllow},
			{"fchownat", []uint64{0, 0, minus, minus}, retAllow},
			{"fchownat", []uint64{0, 0, 33, minus}, retNotify},
			{"fchownat", []uint64{0, 0, 0, 33}, retNotify},
			{"fchown", []uint64{0, 33, 0}, retNotify},
			{"fchown", []uint64{0, 0, 0}, retAllow},
			{"mknodat", []uint64{0, 0, unix.S_IFIFO | 0o644}, retAllow},
			{"mknodat", []uint64{0, 0, 0o644}, retAllow},
			{"mknodat", []uint64{0, 0, unix.S_IFCHR | 0o644}, retNotify},
			{"mknodat", []uint64{0, 0, unix.S_IFBLK | 0o644}, retNotify},
			{"getsockopt", []uint64{3, unix.SOL_SOCKET, unix.SO_PEERCRED}, retNotify},
			{"getsockopt", []uint64{3, unix.SOL_SOCKET, unix.SO_ERROR}, retAllow},
			{"prctl", []uint64{unix.PR_SET_KEEPCAPS, 1}, retNotify},
			{"prctl", []uint64{unix.PR_SET_NAME}, retAllow},
			{"prlimit64", []uint64{0, unix.RLIMIT_LOCKS}, retNotify},
			{"prlimit64", []uint64{0, unix.RLIMIT_NOFILE}, retAllow},
		} {
			r, ok := lookup(c.call)
			if !ok || r.nr[native] < 0 {
				t.Fatalf("no %s on %s", c.call, goarch)
			}
			d := data{nr: uint32(r.nr[native]), arch: native.auditArch()}
			copy(d.args[:], c.args)
			if got := newVM(t, p).run(t, d); got != c.want {
				t.Errorf("%s: %s%v gives %#x, want %#x", goarch, c.call, c.args, got, c.want)
			}
		}
	}
}
