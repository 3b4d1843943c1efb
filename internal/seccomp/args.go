package seccomp

import (
	"cmp"
	"math"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// missing is the distance of a jump whose target is not yet known.
const missing = math.MaxUint32

// switchMin is the number of consecutive comparisons of one argument with
// constants from which a binary search is worth it: the default profile lists
// some forty address families for socket(2).
const switchMin = 4

// ruleCode tries rules in order and ends with the fallback. It jumps only
// within itself.
func ruleCode(rules []rule, fallback uint32, wide bool) []unix.SockFilter {
	var out []unix.SockFilter
	for len(rules) > 0 {
		if n := switchable(rules, wide); n >= switchMin {
			out = switchOn(out, rules[:n], wide, n == len(rules), fallback)
			rules = rules[n:]
			continue
		}
		out = oneRule(out, rules[0], wide)
		rules = rules[1:]
	}
	return append(out, ret(fallback))
}

// switchable counts the leading rules that compare one argument, with one high
// half, for equality.
func switchable(rules []rule, wide bool) int {
	first := rules[0].args[0]
	for i, r := range rules {
		a := r.args[0]
		if len(r.args) != 1 || a.Op != specs.OpEqualTo || a.Index != first.Index || wide && high(a.Value) != high(first.Value) {
			return i
		}
	}
	return len(rules)
}

// switchOn searches the argument's value among those of the rules. Where the
// rules are the last ones a miss returns the fallback, else it goes on behind.
func switchOn(out []unix.SockFilter, rules []rule, wide, last bool, fallback uint32) []unix.SockFilter {
	// Stable, so that of two rules for one value the first counts.
	sorted := slices.Clone(rules)
	slices.SortStableFunc(sorted, func(x, y rule) int { return cmp.Compare(low(x.args[0].Value), low(y.args[0].Value)) })
	miss := span{miss: !last, act: fallback}
	spans := []span{miss}
	next := uint64(0)
	for _, r := range sorted {
		v := uint64(low(r.args[0].Value))
		if v < next {
			continue
		}
		if v > next {
			miss.start = uint32(next)
			spans = addFirst(spans, miss)
		}
		spans = addFirst(spans, span{start: uint32(v), act: r.action})
		next = v + 1
	}
	if next <= math.MaxUint32 {
		miss.start = uint32(next)
		spans = addFirst(spans, miss)
	}
	arg := rules[0].args[0]
	begin := len(out)
	if wide {
		out = append(out, load(highOffset(arg.Index)), jump(unix.BPF_JEQ, high(arg.Value), 1, 0), skip(missing))
	}
	out = tree(append(out, load(lowOffset(arg.Index))), spans)
	for i := begin; i < len(out); i++ {
		if out[i] == skip(missing) {
			out[i].K = uint32(len(out) - i - 1)
		}
	}
	return out
}

// addFirst is add for a list whose first span may turn out to be empty.
func addFirst(spans []span, s span) []span {
	if len(spans) == 1 && s.start == 0 {
		spans[0] = s
		return spans
	}
	return add(spans, s)
}

// oneRule appends the comparisons of a rule, ANDed, and its return. A
// comparison that fails goes behind it. At most 6 arguments of at most 6
// instructions: within the reach of a conditional jump.
func oneRule(out []unix.SockFilter, r rule, wide bool) []unix.SockFilter {
	begin := len(out)
	for _, a := range r.args {
		out = compare(out, a, wide)
	}
	out = append(out, ret(r.action))
	for i := begin; i < len(out); i++ {
		if out[i].Code&0x07 != unix.BPF_JMP {
			continue
		}
		to := uint8(len(out) - i - 1)
		if out[i].Jt == fail {
			out[i].Jt = to
		}
		if out[i].Jf == fail {
			out[i].Jf = to
		}
	}
	return out
}

// fail marks a jump to behind the rule until oneRule knows how far that is.
const fail = math.MaxUint8

// compare appends one comparison, which goes on behind itself where it holds.
func compare(out []unix.SockFilter, a specs.LinuxSeccompArg, wide bool) []unix.SockFilter {
	hi := high(a.Value)
	if !wide {
		return compareLow(append(out, load(lowOffset(a.Index))), a)
	}
	out = append(out, load(highOffset(a.Index)))
	switch a.Op {
	case specs.OpEqualTo:
		out = append(out, jump(unix.BPF_JEQ, hi, 0, fail))
	case specs.OpNotEqual:
		// Another high half: holds, behind the load and the comparison of the low one.
		out = append(out, jump(unix.BPF_JEQ, hi, 0, 2))
	case specs.OpMaskedEqual:
		if hi == 0 && high(a.ValueTwo) == 0 {
			// The high half is masked out.
			out = out[:len(out)-1]
			break
		}
		out = append(out, and(hi), jump(unix.BPF_JEQ, high(a.ValueTwo), 0, fail))
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		out = append(out, jump(unix.BPF_JGT, hi, 3, 0), jump(unix.BPF_JEQ, hi, 0, fail))
	case specs.OpLessThan, specs.OpLessEqual:
		out = append(out, jump(unix.BPF_JGT, hi, fail, 0), jump(unix.BPF_JEQ, hi, 0, 2))
	}
	return compareLow(append(out, load(lowOffset(a.Index))), a)
}

// compareLow compares the loaded low half; for all but the mask it is one
// instruction, on which compare's jumps count.
func compareLow(out []unix.SockFilter, a specs.LinuxSeccompArg) []unix.SockFilter {
	lo := low(a.Value)
	switch a.Op {
	case specs.OpEqualTo:
		return append(out, jump(unix.BPF_JEQ, lo, 0, fail))
	case specs.OpNotEqual:
		return append(out, jump(unix.BPF_JEQ, lo, fail, 0))
	case specs.OpMaskedEqual:
		return append(out, and(lo), jump(unix.BPF_JEQ, low(a.ValueTwo), 0, fail))
	case specs.OpGreaterThan:
		return append(out, jump(unix.BPF_JGT, lo, 0, fail))
	case specs.OpGreaterEqual:
		return append(out, jump(unix.BPF_JGE, lo, 0, fail))
	case specs.OpLessThan:
		return append(out, jump(unix.BPF_JGE, lo, fail, 0))
	default: // OpLessEqual; checkArgs admits no other
		return append(out, jump(unix.BPF_JGT, lo, fail, 0))
	}
}

func high(v uint64) uint32 { return uint32(v >> 32) }
func low(v uint64) uint32  { return uint32(v) }

// Both machines with a table are little-endian.
func lowOffset(index uint) uint32  { return offArgs + 8*uint32(index) }
func highOffset(index uint) uint32 { return lowOffset(index) + 4 }
