package seccomp

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Return values of a filter, from linux/seccomp.h. The low 16 bits are data.
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
	retDataMask    = 0x0000ffff
)

const retNoSys = retErrno | uint32(unix.ENOSYS)

// maxArgs is the number of arguments in seccomp_data.
const maxArgs = 6

// action is the return value for an OCI action. The data of ERRNO and TRACE
// is EPERM where none is given, as in runc.
func action(a specs.LinuxSeccompAction, data *uint) (uint32, error) {
	value := uint32(unix.EPERM)
	if data != nil {
		if *data > retDataMask {
			return 0, fmt.Errorf("seccomp profile: errnoRet %d is out of range", *data)
		}
		value = uint32(*data)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | value, nil
	case specs.ActTrace:
		return retTrace | value, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("seccomp profile: action %s needs a supervisor and is not supported", a)
	}
	return 0, fmt.Errorf("seccomp profile: unknown action %q", a)
}

// rule is one rule with arguments.
type rule struct {
	action uint32
	args   []specs.LinuxSeccompArg // at most one an index
}

// outcome is what the profile says about one syscall of one ABI.
type outcome struct {
	nr     uint32
	always bool // action holds whatever the arguments
	action uint32
	rules  []rule
}

// ruleset is a checked profile.
type ruleset struct {
	fallback uint32 // default action
	newer    uint32 // for syscalls newer than the profile
	rules    []named
}

type named struct {
	names  []string
	action uint32
	args   []specs.LinuxSeccompArg
	only   []abi // nil: all
}

// parseRules checks all rules of a profile, also those that no ABI will use.
func parseRules(p *specs.LinuxSeccomp) (*ruleset, error) {
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	rs := &ruleset{fallback: fallback, newer: retNoSys}
	if fallback == retAllow || fallback == retLog {
		rs.newer = fallback
	}
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		if len(s.Names) == 0 {
			return nil, fmt.Errorf("seccomp profile: rule %d names no syscall", i)
		}
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		twice, err := checkArgs(s)
		if err != nil {
			return nil, err
		}
		if !twice {
			rs.rules = append(rs.rules, named{names: s.Names, action: act, args: s.Args})
			continue
		}
		for j := range s.Args {
			rs.rules = append(rs.rules, named{names: s.Names, action: act, args: s.Args[j : j+1]})
		}
	}
	return rs, nil
}

// checkArgs validates a rule's arguments; twice says that one index occurs twice.
func checkArgs(s *specs.LinuxSyscall) (twice bool, err error) {
	var seen [maxArgs]bool
	for _, a := range s.Args {
		if a.Index >= maxArgs {
			return false, fmt.Errorf("seccomp profile: rule for %s: argument index %d is out of range", s.Names[0], a.Index)
		}
		switch a.Op {
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan,
			specs.OpGreaterEqual, specs.OpMaskedEqual:
		default:
			return false, fmt.Errorf("seccomp profile: rule for %s: unknown operator %q", s.Names[0], a.Op)
		}
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	return twice, nil
}

// tables are the outcomes of every ABI, sorted by number, and the newest
// number that the profile names in each.
type tables struct {
	outcomes [abiCount][]outcome
	newest   [abiCount]uint32
}

// resolve spreads the rules over the numbers of the wanted ABIs.
func (rs *ruleset) resolve(want []abi) *tables {
	t := new(tables)
	entries := make([]entry, 0, 512)
	for _, b := range want {
		entries = entries[:0]
		for i := range rs.rules {
			entries = rs.spread(entries, b, i, &t.newest[b])
		}
		// Stable, so that rules for one number keep the order of the profile.
		slices.SortStableFunc(entries, func(x, y entry) int { return cmp.Compare(x.nr, y.nr) })
		t.outcomes[b] = merge(entries)
	}
	return t
}

// entry is one rule for one number.
type entry struct {
	nr     uint32
	action uint32
	args   []specs.LinuxSeccompArg
}

func (rs *ruleset) spread(entries []entry, b abi, i int, newest *uint32) []entry {
	n := &rs.rules[i]
	if n.only != nil && !slices.Contains(n.only, b) {
		return entries
	}
	for _, name := range n.names {
		if b == abiX86 {
			entries = rs.spreadMuxed(entries, n, name)
		}
		r, ok := lookup(name)
		if !ok || r.nr[b] < 0 {
			continue
		}
		nr := uint32(r.nr[b])
		if !(b == abiARM && nr >= armPrivateBase) {
			*newest = max(*newest, nr)
		}
		if n.action != rs.fallback {
			entries = append(entries, entry{nr, n.action, n.args})
		}
	}
	return entries
}

func (rs *ruleset) spreadMuxed(entries []entry, n *named, name string) []entry {
	through, call, ok := demux(name)
	if !ok || n.action == rs.fallback {
		return entries
	}
	if len(n.args) > 0 && (n.action == retAllow || n.action == retLog) {
		return entries
	}
	r, ok := lookup(through)
	if !ok {
		return entries
	}
	args := []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpEqualTo, Value: uint64(call)}}
	return append(entries, entry{uint32(r.nr[abiX86]), n.action, args})
}

// merge makes one outcome of the entries of each number.
func merge(entries []entry) []outcome {
	out := make([]outcome, 0, len(entries))
	for _, e := range entries {
		if len(out) == 0 || out[len(out)-1].nr != e.nr {
			out = append(out, outcome{nr: e.nr})
		}
		o := &out[len(out)-1]
		switch {
		case o.always:
		case len(e.args) == 0:
			o.always, o.action, o.rules = true, e.action, nil
		default:
			o.rules = append(o.rules, rule{e.action, e.args})
		}
	}
	return out
}
