package seccomp

import (
	"fmt"
	"math"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxInstructions is the kernel's limit (BPF_MAXINSNS, linux/bpf_common.h).
const maxInstructions = 4096

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// Compile makes the program for a resolved profile on this machine's
// architecture, and the flags for Install.
func Compile(p *specs.LinuxSeccomp) (Program, uint, error) {
	return compileFor(p, runtime.GOARCH)
}

func compileFor(p *specs.LinuxSeccomp, goarch string) (Program, uint, error) {
	flags, err := filterFlags(p)
	if err != nil {
		return nil, 0, err
	}
	rs, err := parseRules(p)
	if err != nil {
		return nil, 0, err
	}
	list, err := machines(p.Architectures, goarch)
	if err != nil {
		return nil, 0, err
	}
	out, err := assemble(rs, list)
	return out, flags, err
}

// assemble makes the program of a ruleset for some architectures.
func assemble(rs *ruleset, list []machine) (Program, error) {
	var want []abi
	for _, m := range list {
		want = append(want, m.abis...)
	}
	t := rs.resolve(want)
	out := Program(make([]unix.SockFilter, 0, 1024))
	out = append(out, load(offArch))
	for _, m := range list {
		at := len(out)
		// A body may be longer than a conditional jump reaches.
		out = append(out, jump(unix.BPF_JEQ, m.audit, 1, 0), skip(0), load(offNr))
		out = tree(out, machineRanges(rs, t, m))
		out[at+1].K = uint32(len(out) - at - 2)
	}
	out = append(out, ret(retKillProcess))
	if len(out) > maxInstructions {
		return nil, fmt.Errorf("compile seccomp profile: %d instructions, the kernel takes %d", len(out), maxInstructions)
	}
	return out, nil
}

// filterFlags maps the flags of a profile. Without any, speculative store
// bypass is left to the program, as in runc: the mitigation that older kernels
// couple to seccomp costs much and protects nothing here.
func filterFlags(p *specs.LinuxSeccomp) (uint, error) {
	if p.ListenerPath != "" {
		return 0, fmt.Errorf("seccomp profile: listenerPath is not supported")
	}
	if p.Flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint
	for _, f := range p.Flags {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// Accepted and without effect, as in runc: what executes the
			// payload is one thread.
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return 0, fmt.Errorf("seccomp profile: flag %q is not supported", f)
		}
	}
	return flags, nil
}

// span is a range of values of the accumulator, from start to the next span,
// and what is done there. code holds only jumps within itself; miss stands for
// a jump to behind the tree, which switchOn patches.
type span struct {
	start uint32
	act   uint32
	code  []unix.SockFilter // nil: return act
	miss  bool
}

func (s span) same(o span) bool {
	return s.code == nil && o.code == nil && s.miss == o.miss && s.act == o.act
}

// add appends a span unless it only continues the last one.
func add(spans []span, s span) []span {
	if n := len(spans); n > 0 && spans[n-1].same(s) {
		return spans
	}
	return append(spans, s)
}

// machineRanges covers all 2^32 numbers of one architecture.
func machineRanges(rs *ruleset, t *tables, m machine) []span {
	spans := make([]span, 0, 256)
	for i, b := range m.abis {
		if i == 0 {
			spans = abiRanges(spans, rs, t, b, 0)
		} else {
			spans = abiRanges(spans, rs, t, b, x32Bit)
		}
	}
	if m.audit == unix.AUDIT_ARCH_X86_64 && len(m.abis) == 1 {
		// x32 shares the architecture and is not on the list.
		spans = add(spans, span{start: x32Bit, act: retKillProcess})
	}
	// A tracer skips a syscall by making it -1: that is no new syscall.
	return add(spans, span{start: math.MaxUint32, act: rs.fallback})
}

// abiRanges appends the spans of one ABI, whose numbers begin at base.
func abiRanges(spans []span, rs *ruleset, t *tables, b abi, base uint32) []span {
	newest, newer, next := t.newest[b], rs.newer, base
	if newest == 0 {
		// The profile names nothing here: nothing can be said to be newer.
		newer = rs.fallback
	}
	gap := func(until uint32) {
		// Unlisted numbers from next to before until.
		if next < until && next <= newest {
			spans = add(spans, span{start: next, act: rs.fallback})
			next = newest + 1
		}
		if next < until {
			spans = add(spans, span{start: next, act: newer})
		}
		next = until
	}
	for i := range t.outcomes[b] {
		o := &t.outcomes[b][i]
		gap(o.nr)
		s := span{start: o.nr, act: o.action}
		if !o.always {
			s.code = ruleCode(o.rules, rs.fallback, b.wide())
		}
		spans = add(spans, s)
		next = o.nr + 1
	}
	// Whatever comes behind starts a span of its own.
	gap(math.MaxUint32)
	return spans
}

// tree appends a binary search of the accumulator over spans.
func tree(out []unix.SockFilter, spans []span) []unix.SockFilter {
	if len(spans) == 1 {
		s := &spans[0]
		switch {
		case s.miss:
			return append(out, skip(missing))
		case s.code != nil:
			return append(out, s.code...)
		}
		return append(out, ret(s.act))
	}
	mid := len(spans) / 2
	at := len(out)
	out = append(out, jump(unix.BPF_JGE, spans[mid].start, 0, 0))
	out = tree(out, spans[:mid])
	if n := len(out) - at - 1; n <= math.MaxUint8 {
		out[at].Jt = uint8(n)
	} else {
		// Everything generated so far jumps only within itself: it can move.
		out = append(out, unix.SockFilter{})
		copy(out[at+2:], out[at+1:])
		out[at].Jf = 1
		out[at+1] = skip(uint32(n))
	}
	return tree(out, spans[mid:])
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func jump(op uint16, k uint32, jt, jf uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: jt, Jf: jf, K: k}
}

func skip(n uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: n}
}

func and(mask uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}
}

func ret(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}
