package seccomp

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func parse(t testing.TB, s string) *Profile {
	t.Helper()
	p, err := Load(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// handmade has every action and operator, overlaps, and arguments of all widths.
const handmade = `{
	"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 77,
	"archMap": [
		{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
		{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
	],
	"syscalls": [
		{"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
		{"names": ["open", "openat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
		{"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS"},
		{"names": ["tkill"], "action": "SCMP_ACT_KILL_THREAD"},
		{"names": ["dup"], "action": "SCMP_ACT_TRAP"},
		{"names": ["getpid"], "action": "SCMP_ACT_LOG"},
		{"names": ["pause"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
		{"names": ["mmap"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 4294967296, "op": "SCMP_CMP_GT"}, {"index": 2, "value": 8589934593, "op": "SCMP_CMP_LE"}]},
		{"names": ["mprotect"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 4294967298, "op": "SCMP_CMP_NE"}]},
		{"names": ["lseek"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 4294967298, "op": "SCMP_CMP_LT"}]},
		{"names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": [{"index": 1, "value": 12884901888, "op": "SCMP_CMP_GE"}]},
		{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 18446744069414584575, "valueTwo": 4294967299, "op": "SCMP_CMP_MASKED_EQ"}]},
		{"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6, "args": [{"index": 1, "value": 255, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]},
		{"names": ["prctl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
		{"names": ["fcntl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]},
		{"names": ["fcntl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]},
		{"names": ["fcntl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9, "args": [{"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]},
		{"names": ["fcntl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 4294967295, "op": "SCMP_CMP_EQ"}]},
		{"names": ["fcntl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 0, "op": "SCMP_CMP_EQ"}]},
		{"names": ["fcntl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 10, "args": [{"index": 2, "value": 1, "op": "SCMP_CMP_GE"}]},
		{"names": ["chdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
		{"names": ["chdir"], "action": "SCMP_ACT_ALLOW"},
		{"names": ["chdir"], "action": "SCMP_ACT_KILL"},
		{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
		{"names": ["chmod"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 511, "op": "SCMP_CMP_EQ"}]},
		{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]},
		{"names": ["bind", "semop"], "action": "SCMP_ACT_ALLOW"},
		{"names": ["connect"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]},
		{"names": ["set_tls", "rt_sigaction"], "action": "SCMP_ACT_ALLOW"},
		{"names": ["process_mrelease"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
		{"names": ["madvise"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8589938687, "op": "SCMP_CMP_GT"}]},
		{"names": ["msync"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8589938687, "op": "SCMP_CMP_GE"}]},
		{"names": ["munmap"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 12884901888, "op": "SCMP_CMP_LT"}]},
		{"names": ["brk"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 5, "value": 12884901888, "op": "SCMP_CMP_LE"}]}
	]}`

func TestProgramAgreesWithAProfileOfEveryActionAndOperator(t *testing.T) {
	p := parse(t, handmade)
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) { check(t, resolved(t, p, nil, arch), arch, 60) })
	}
	t.Run("the native architecture alone", func(t *testing.T) {
		r := resolved(t, p, nil, "amd64")
		r.Architectures = nil
		check(t, r, "amd64", 20)
	})
	for _, act := range []specs.LinuxSeccompAction{specs.ActAllow, specs.ActLog, specs.ActKillProcess, specs.ActTrap} {
		t.Run("default "+string(act), func(t *testing.T) {
			r := resolved(t, p, nil, "amd64")
			r.DefaultAction, r.DefaultErrnoRet = act, nil
			check(t, r, "amd64", 10)
		})
	}
}

func TestNewSyscallsGetENOSYS(t *testing.T) {
	prog, _, err := compileFor(resolved(t, parse(t, handmade), nil, "amd64"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	m := newVM(t, prog)
	for _, c := range []struct {
		name string
		nr   uint32
		want uint32
	}{
		{"a call that the profile does not name but could", 1, retAllow},
		{"a call between those that it names", 300, retErrno | 77},
		{"the newest that it names, process_mrelease, with the default action", 448, retErrno | 77},
		{"the one after that", 449, retNoSys},
		{"a call that does not exist", 9999, retNoSys},
		{"a call that a tracer skips", 0xffffffff, retErrno | 77},
	} {
		if got := m.run(t, data{nr: c.nr, arch: 0xc000003e}); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

// TestSpotChecksOfTheDefaultProfile are written by hand: they hold whatever
// the other tests' evaluation has in common with the compiler.
func TestSpotChecksOfTheDefaultProfile(t *testing.T) {
	prog, _, err := compileFor(resolved(t, Default(), dockerCaps, "amd64"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	m := newVM(t, prog)
	const amd64, i386, eperm, enosys = 0xc000003e, 0x40000003, retErrno | 1, retErrno | 38
	for _, c := range []struct {
		name string
		d    data
		want uint32
	}{
		{"read", data{nr: 0, arch: amd64}, retAllow},
		{"execve", data{nr: 59, arch: amd64}, retAllow},
		{"mount", data{nr: 165, arch: amd64}, eperm},
		{"umount2 of i386", data{nr: 52, arch: i386}, eperm},
		{"clone with SIGCHLD", data{nr: 56, arch: amd64, args: [6]uint64{17}}, retAllow},
		{"clone with CLONE_NEWUSER", data{nr: 56, arch: amd64, args: [6]uint64{0x10000000}}, eperm},
		{"clone with high bits", data{nr: 56, arch: amd64, args: [6]uint64{1 << 40}}, retAllow},
		{"clone3", data{nr: 435, arch: amd64}, enosys},
		{"unshare", data{nr: 272, arch: amd64}, eperm},
		{"socket of AF_UNIX", data{nr: 41, arch: amd64, args: [6]uint64{1}}, retAllow},
		{"socket of AF_INET6", data{nr: 41, arch: amd64, args: [6]uint64{10}}, retAllow},
		{"socket of AF_VSOCK", data{nr: 41, arch: amd64, args: [6]uint64{40}}, eperm},
		{"socket of AF_ALG", data{nr: 41, arch: amd64, args: [6]uint64{38}}, eperm},
		{"personality of Linux", data{nr: 135, arch: amd64, args: [6]uint64{0}}, retAllow},
		{"personality READ_IMPLIES_EXEC", data{nr: 135, arch: amd64, args: [6]uint64{0x400000}}, eperm},
		{"x32's execve", data{nr: 520 | x32Bit, arch: amd64}, retAllow},
		{"x32's mount", data{nr: 165 | x32Bit, arch: amd64}, eperm},
		{"read of i386", data{nr: 3, arch: i386}, retAllow},
		{"a foreign architecture", data{nr: 0, arch: 0xc00000b7}, retKillProcess},
	} {
		if got := m.run(t, c.d); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}

func TestResolveLooksAtCapabilitiesArchitectureAndKernel(t *testing.T) {
	p := parse(t, `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
		{"name": "mount", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_MKNOD"]}},
		{"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}},
		{"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
		{"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
		{"names": ["acct"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "5.10"}}]}`)
	before, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, arch, kernel string
		caps               []string
		want               []string
	}{
		{"nothing", "arm64", "4.7.9", nil, []string{"clone", "acct"}},
		{"an old kernel", "amd64", "4.8-rc1", nil, []string{"clone", "arch_prctl", "ptrace", "acct"}},
		{"all capabilities are needed to include", "amd64", "5.10.0", []string{"CAP_SYS_ADMIN"}, []string{"arch_prctl", "ptrace"}},
		{"any excludes", "amd64", "6.1.0-13-amd64", []string{"CAP_SYS_ADMIN", "CAP_MKNOD"}, []string{"mount", "arch_prctl", "ptrace"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := Resolve(p, c.caps, Host{Arch: c.arch, Kernel: c.kernel})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range out.Syscalls {
				got = append(got, s.Names...)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	after, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("Resolve has changed the profile")
	}
}

func TestBadProfilesAreErrors(t *testing.T) {
	rule := func(s string) string { return `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [` + s + `]}` }
	for _, c := range []struct{ name, profile, want string }{
		{"not JSON", `{`, "decode"},
		{"two values", `{"defaultAction": "SCMP_ACT_ALLOW"} {}`, "data after"},
		{"no default", `{}`, "no defaultAction"},
		{"unknown default", `{"defaultAction": "SCMP_ACT_FOO"}`, `unknown action "SCMP_ACT_FOO"`},
		{"both forms of architecture", `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}`, "both architectures and archMap"},
		{"unknown architecture", `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}`, "unknown architecture"},
		{"both forms of name", rule(`{"name": "a", "names": ["b"], "action": "SCMP_ACT_ERRNO"}`), "both name and names"},
		{"null rule", rule(`null`), "empty rule"},
		{"no name", rule(`{"action": "SCMP_ACT_ERRNO"}`), "names no syscall"},
		{"unknown action", rule(`{"names": ["read"], "action": "x"}`), "unknown action"},
		{"notify", rule(`{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}`), "not supported"},
		{"large errno", rule(`{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 65536}`), "out of range"},
		{"seventh argument", rule(`{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}`), "index 6"},
		{"unknown operator", rule(`{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "op": "=="}]}`), "unknown operator"},
		{"unknown flag", `{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}`, `flag "X"`},
		{"bad kernel", rule(`{"names": ["read"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "new"}}`), "kernel version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := compileText(c.profile)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func compileText(s string) error {
	p, err := Load(strings.NewReader(s))
	if err != nil {
		return err
	}
	r, err := Resolve(p, nil, Host{Arch: "amd64", Kernel: "6.1.0"})
	if err != nil {
		return err
	}
	_, _, err = compileFor(r, "amd64")
	return err
}

func TestFlags(t *testing.T) {
	for profile, want := range map[string]uint{
		`{"defaultAction": "SCMP_ACT_ALLOW"}`:                                                                           4,
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": []}`:                                                              0,
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}`:                                     2,
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}`: 4,
	} {
		_, got, err := compileFor(resolved(t, parse(t, profile), nil, "amd64"), "amd64")
		if err != nil || got != want {
			t.Errorf("%s: %#x %v, want %#x", profile, got, err, want)
		}
	}
}

func TestAProgramTravels(t *testing.T) {
	prog, _, err := compileFor(resolved(t, Default(), dockerCaps, "amd64"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(prog)
	if err != nil {
		t.Fatal(err)
	}
	var back Program
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(prog, back) {
		t.Error("another program arrives")
	}
	if err := back.UnmarshalBinary(make([]byte, 9)); err == nil {
		t.Error("nine bytes are a program")
	}
	var none Program
	if err := json.Unmarshal([]byte("null"), &none); err != nil || none != nil {
		t.Errorf("null: %v %v", none, err)
	}
}

func TestTableIsSorted(t *testing.T) {
	if !slices.IsSortedFunc(table[:], func(a, b row) int { return strings.Compare(a.name, b.name) }) {
		t.Error("table is not sorted by name")
	}
}

// FuzzProfile compiles whatever parses, and compares the program with the
// profile at random places.
func FuzzProfile(f *testing.F) {
	f.Add([]byte(handmade), uint32(10), uint64(1), uint64(2))
	f.Add([]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL"}]}`), uint32(0), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, raw []byte, nr uint32, a, b uint64) {
		p, err := Load(strings.NewReader(string(raw)))
		if err != nil {
			return
		}
		for _, arch := range []string{"amd64", "arm64"} {
			r, err := Resolve(p, []string{"CAP_SYS_ADMIN"}, Host{Arch: arch, Kernel: "6.1"})
			if err != nil {
				return
			}
			prog, _, err := compileFor(r, arch)
			if err != nil {
				return
			}
			m := newVM(t, prog)
			for _, audit := range audits(arch) {
				for _, d := range []data{
					{nr: nr, arch: audit, args: [6]uint64{a, b, a, b, a, b}},
					{nr: nr % 512, arch: audit, args: [6]uint64{b, a, b, a, b, a}},
					{nr: nr%512 | x32Bit, arch: audit, args: [6]uint64{a, b, a, b, a, b}},
				} {
					if got, want := m.run(t, d), expect(t, r, arch, d); got != want {
						t.Fatalf("%s %+v: program returns %#x, profile says %#x", arch, d, got, want)
					}
				}
			}
		}
	})
}
