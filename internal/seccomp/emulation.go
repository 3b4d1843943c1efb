package seccomp

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// retNotify is SECCOMP_RET_USER_NOTIF: the call waits for what a supervisor says.
// Among several filters every refusal goes before it, and it goes before all that
// let the call pass (seccomp(2)).
const retNotify = 0x7fc00000

// Emulation makes the program that has a supervisor asked about the calls with which
// a program notices that only one id is mapped: those that read and set ids, that
// give files to others, that make device nodes, that show who owns a file, the
// identity of a socket's peer, execve and PR_SET_KEEPCAPS, which change ids and what they mean, and
// RLIMIT_LOCKS, in which the supervisor keeps them. All
// others pass. Calls whose owner is root, or is to stay, are not asked about: the
// kernel does them.
func Emulation() (Program, error) { return emulationFor(runtime.GOARCH) }

func emulationFor(goarch string) (Program, error) {
	native, others, err := nativeABI(goarch)
	if err != nil {
		return nil, err
	}
	list := []machine{{native.auditArch(), []abi{native}}}
	for _, b := range others {
		if b.auditArch() == native.auditArch() {
			list[0].abis = append(list[0].abis, b)
		} else {
			list = append(list, machine{b.auditArch(), []abi{b}})
		}
	}
	rs := &ruleset{fallback: retAllow, newer: retAllow}
	for _, b := range append([]abi{native}, others...) {
		rs.rules = append(rs.rules, emulated(b, b == native)...)
	}
	return assemble(rs, list)
}

// emulated are the rules for one ABI. The 32 bit ones have calls with ids of 16 bits
// under the plain names, which no program has used for twenty years; they are left
// alone, as are their structures for stat(2).
func emulated(b abi, native bool) []named {
	suffix := ""
	if b == abiX86 || b == abiARM {
		suffix = "32"
	}
	var out []named
	add := func(names string, args ...specs.LinuxSeccompArg) {
		out = append(out, named{names: strings.Fields(names), action: retNotify, args: args, only: []abi{b}})
	}
	for _, name := range []string{
		"getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "setuid", "setgid",
		"setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups",
	} {
		add(name + suffix)
	}
	add("execve execveat statx")
	if native {
		add("stat lstat fstat newfstatat")
	}
	for _, first := range []uint{1, 2} { // the user's index among the arguments; the group follows
		names := "chown" + suffix + " lchown" + suffix + " fchown" + suffix
		if first == 2 {
			names = "fchownat"
		}
		for _, id := range []uint{first, first + 1} {
			add(names, differs(id, 0), differs(id, math.MaxUint32))
		}
	}
	for index, name := range map[uint]string{1: "mknod", 2: "mknodat"} {
		for _, typ := range []uint64{unix.S_IFCHR, unix.S_IFBLK} {
			add(name, specs.LinuxSeccompArg{Index: index, Op: specs.OpMaskedEqual, Value: unix.S_IFMT, ValueTwo: typ})
		}
	}
	limit := func(index uint) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Op: specs.OpEqualTo, Value: unix.RLIMIT_LOCKS}
	}
	add("prlimit64", limit(1))
	if native {
		add("getrlimit setrlimit", limit(0))
	}
	add("prctl", specs.LinuxSeccompArg{Index: 0, Op: specs.OpEqualTo, Value: unix.PR_SET_KEEPCAPS})
	add("getsockopt",
		specs.LinuxSeccompArg{Index: 1, Op: specs.OpEqualTo, Value: unix.SOL_SOCKET},
		specs.LinuxSeccompArg{Index: 2, Op: specs.OpEqualTo, Value: unix.SO_PEERCRED})
	return out
}

func differs(index uint, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Op: specs.OpNotEqual, Value: value}
}

// Call is a system call as a filter sees it: an AUDIT_ARCH and a number.
type Call struct {
	Arch uint32
	Nr   int32
}

// EmulatedCalls are the names of the calls that Emulation asks about. Those that have
// another one for ids of 32 bits are under the plain name.
func EmulatedCalls() (map[Call]string, error) {
	native, others, err := nativeABI(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	calls := map[Call]string{}
	for _, b := range append([]abi{native}, others...) {
		for _, n := range emulated(b, b == native) {
			for _, name := range n.names {
				if r, ok := lookup(name); ok && r.nr[b] >= 0 {
					calls[Call{b.auditArch(), r.nr[b]}] = strings.TrimSuffix(name, "32")
				}
			}
		}
	}
	return calls, nil
}

// Listen puts the program on the calling thread and returns the descriptor on which
// its supervisor is asked (seccomp_unotify(2), Linux 5.0). A thread has at most one
// such filter, those that it inherited included (EBUSY).
func (p Program) Listen() (*os.File, error) {
	flags := uint(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	// A call that has reached the supervisor is not broken off by a signal that does
	// not kill: it would be made twice (Linux 5.19).
	fd, err := p.install(flags | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	if err == unix.EINVAL {
		fd, err = p.install(flags)
	}
	if err != nil {
		return nil, fmt.Errorf("install seccomp program with a supervisor: %w", err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "seccomp listener"), nil
}

func (p Program) install(flags uint) (int, error) {
	if len(p) == 0 || len(p) > maxInstructions {
		return -1, unix.EINVAL
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
