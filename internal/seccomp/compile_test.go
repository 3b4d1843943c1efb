package seccomp

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// dockerCaps is docker's default capability set.
var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

func resolved(t testing.TB, p *Profile, caps []string, arch string) *specs.LinuxSeccomp {
	t.Helper()
	out, err := Resolve(p, caps, Host{Arch: arch, Kernel: "6.1.0-13-amd64"})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// vm runs a program as the kernel does, on golang.org/x/net/bpf's interpreter:
// its loads are big-endian, so seccomp_data is laid out word by word.
type vm struct{ vm *bpf.VM }

func newVM(t testing.TB, p Program) vm {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(p))
	for i, f := range p {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	list, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("program has instructions that the interpreter does not know")
	}
	m, err := bpf.NewVM(list)
	if err != nil {
		t.Fatal(err)
	}
	return vm{m}
}

func (m vm) run(t testing.TB, d data) uint32 {
	t.Helper()
	got, err := m.vm.Run(d.bytes())
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

func (d data) bytes() []byte {
	var b [64]byte
	put := func(off int, v uint32) {
		b[off], b[off+1], b[off+2], b[off+3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
	}
	put(0, d.nr)
	put(4, d.arch)
	for i, a := range d.args {
		put(16+8*i, uint32(a))
		put(20+8*i, uint32(a>>32))
	}
	return b[:]
}

func abiOf(d data, list []machine) (abi, bool) {
	for _, m := range list {
		if m.audit != d.arch {
			continue
		}
		if len(m.abis) == 2 && d.nr >= x32Bit {
			return m.abis[1], true
		}
		if d.arch == unix.AUDIT_ARCH_X86_64 && d.nr >= x32Bit && d.nr != 0xffffffff {
			return 0, false
		}
		return m.abis[0], true
	}
	return 0, false
}

// expect evaluates the profile directly, rule by rule and without the
// compiler's data structures.
func expect(t testing.TB, p *specs.LinuxSeccomp, goarch string, d data) uint32 {
	t.Helper()
	list, err := machines(p.Architectures, goarch)
	if err != nil {
		t.Fatal(err)
	}
	b, ok := abiOf(d, list)
	if !ok {
		return retKillProcess
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	newest, conditional := uint32(0), uint32(0)
	found := false
	for _, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range s.Names {
			args, match := s.Args, false
			if r, ok := lookup(name); ok && r.nr[b] >= 0 {
				match = uint32(r.nr[b]) == d.nr
				if r.nr[b] < armPrivateBase || b != abiARM {
					newest = max(newest, uint32(r.nr[b]))
				}
			}
			if through, call, ok := demux(name); ok && b == abiX86 && !(len(args) > 0 && act == retAllow) {
				if r, _ := lookup(through); uint32(r.nr[b]) == d.nr {
					match = true
					args = []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpEqualTo, Value: uint64(call)}}
				}
			}
			if !match || act == fallback {
				continue
			}
			if len(args) == 0 {
				return act
			}
			if !found && holds(args, d, b) {
				conditional, found = act, true
			}
		}
	}
	switch {
	case found:
		return conditional
	case newest != 0 && d.nr > newest && d.nr != 0xffffffff && fallback != retAllow && fallback != retLog && !listed(p, b, d.nr):
		return retNoSys
	}
	return fallback
}

func listed(p *specs.LinuxSeccomp, b abi, nr uint32) bool {
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if r, ok := lookup(name); ok && r.nr[b] >= 0 && uint32(r.nr[b]) == nr {
				return true
			}
		}
	}
	return false
}

func holds(args []specs.LinuxSeccompArg, d data, b abi) bool {
	seen := map[uint]int{}
	all, some := true, false
	for _, a := range args {
		seen[a.Index]++
		ok := compares(a, d.args[a.Index], b)
		all, some = all && ok, some || ok
	}
	for _, n := range seen {
		if n > 1 {
			return some
		}
	}
	return all
}

func compares(a specs.LinuxSeccompArg, v uint64, b abi) bool {
	x, y := a.Value, a.ValueTwo
	if b != abiX8664 && b != abiAArch64 {
		x, y, v = uint64(uint32(x)), uint64(uint32(y)), uint64(uint32(v))
	}
	switch a.Op {
	case specs.OpEqualTo:
		return v == x
	case specs.OpNotEqual:
		return v != x
	case specs.OpLessThan:
		return v < x
	case specs.OpLessEqual:
		return v <= x
	case specs.OpGreaterThan:
		return v > x
	case specs.OpGreaterEqual:
		return v >= x
	}
	return v&x == y
}

// values are argument values at and around those that a profile compares with.
func values(p *specs.LinuxSeccomp) []uint64 {
	out := []uint64{0, 1, 0xffffffff, 0x100000000, 0xffffffffffffffff}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				out = append(out, v, v+1, v-1, v^(1<<32), v|0xffffffff00000000, v&0xffffffff)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func audits(goarch string) []uint32 {
	if goarch == "arm64" {
		return []uint32{unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_X86_64}
	}
	return []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64}
}

// check compares a program with the direct evaluation for all numbers up to
// 600 in every ABI, and some beyond.
func check(t testing.TB, p *specs.LinuxSeccomp, goarch string, rounds int) {
	t.Helper()
	prog, _, err := compileFor(p, goarch)
	if err != nil {
		t.Fatal(err)
	}
	m := newVM(t, prog)
	rng := rand.New(rand.NewPCG(1, 2))
	vals := values(p)
	for _, audit := range audits(goarch) {
		var nrs []uint32
		for nr := range uint32(600) {
			nrs = append(nrs, nr, nr|x32Bit)
		}
		nrs = append(nrs, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, armPrivateBase, armPrivateBase+1, armPrivateBase+5, armPrivateBase+6)
		for _, nr := range nrs {
			for range rounds {
				d := data{nr: nr, arch: audit}
				for i := range d.args {
					d.args[i] = vals[rng.IntN(len(vals))]
				}
				if got, want := m.run(t, d), expect(t, p, goarch, d); got != want {
					t.Fatalf("%s: nr %#x arch %#x args %#x: program returns %#x, profile says %#x", goarch, nr, audit, d.args, got, want)
				}
			}
		}
	}
}

func TestProgramAgreesWithTheDefaultProfile(t *testing.T) {
	sets := map[string][]string{
		"docker": dockerCaps,
		"none":   nil,
		"admin":  append(slices.Clone(dockerCaps), "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_SYS_TIME"),
	}
	for _, arch := range []string{"amd64", "arm64"} {
		for name, caps := range sets {
			t.Run(arch+"/"+name, func(t *testing.T) {
				check(t, resolved(t, Default(), caps, arch), arch, 4)
			})
		}
	}
}

func TestProgramSizeOfTheDefaultProfile(t *testing.T) {
	var got string
	for _, arch := range []string{"amd64", "arm64"} {
		prog, flags, err := compileFor(resolved(t, Default(), dockerCaps, arch), arch)
		if err != nil {
			t.Fatal(err)
		}
		got += fmt.Sprintf("%s: %d instructions, flags %#x, at most %d executed\n", arch, len(prog), flags, longest(prog))
	}
	golden(t, "size", got)
}

// longest is the number of instructions on the longest way through a program.
func longest(p Program) int {
	depth := make([]int, len(p))
	for i := len(p) - 1; i >= 0; i-- {
		f := p[i]
		depth[i] = 1
		switch {
		case f.Code == unix.BPF_RET|unix.BPF_K:
		case f.Code == unix.BPF_JMP|unix.BPF_JA:
			depth[i] += depth[i+1+int(f.K)]
		case f.Code&7 == unix.BPF_JMP:
			depth[i] += max(depth[i+1+int(f.Jt)], depth[i+1+int(f.Jf)])
		default:
			depth[i] += depth[i+1]
		}
	}
	return depth[0]
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update to accept):\n%s", path, got)
	}
}

func BenchmarkDefaultResolveAndCompile(b *testing.B) {
	for b.Loop() {
		p := resolved(b, Default(), dockerCaps, "amd64")
		if _, _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
