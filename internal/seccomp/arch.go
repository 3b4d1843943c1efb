package seccomp

//go:generate go run gensyscalls.go

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// abi is a set of syscall numbers: a column of table.
type abi int

const (
	abiX8664 abi = iota
	abiX86
	abiX32
	abiAArch64
	abiARM
	abiCount
)

// x32Bit marks the calls of the x32 ABI, which share AUDIT_ARCH_X86_64.
const x32Bit = 0x40000000

// armPrivateBase is the first of ARM's private calls. They lie far above the
// others and say nothing about how new a profile is.
const armPrivateBase = 0x0f0000

// row is one syscall: its number in each ABI, -1 where there is none.
type row struct {
	name string
	nr   [abiCount]int32
}

// lookup finds a syscall's row by name.
func lookup(name string) (*row, bool) {
	i, ok := slices.BinarySearchFunc(table[:], name, func(r row, name string) int {
		return strings.Compare(r.name, name)
	})
	if !ok {
		return nil, false
	}
	return &table[i], true
}

// machine is one value of seccomp_data.arch and the ABIs that show it.
type machine struct {
	audit uint32
	abis  []abi
}

// auditArch is the value that the kernel shows in seccomp_data.arch.
func (a abi) auditArch() uint32 {
	switch a {
	case abiX8664, abiX32:
		return unix.AUDIT_ARCH_X86_64
	case abiX86:
		return unix.AUDIT_ARCH_I386
	case abiAArch64:
		return unix.AUDIT_ARCH_AARCH64
	default:
		return unix.AUDIT_ARCH_ARM
	}
}

// wide reports whether arguments have 64 bits.
func (a abi) wide() bool { return a == abiX8664 || a == abiAArch64 }

// nativeABI is the ABI of a GOARCH, and those that its kernel may serve beside it.
func nativeABI(goarch string) (native abi, others []abi, err error) {
	switch goarch {
	case "amd64":
		return abiX8664, []abi{abiX86, abiX32}, nil
	case "arm64":
		return abiAArch64, []abi{abiARM}, nil
	}
	return 0, nil, fmt.Errorf("compile seccomp profile: no syscall table for architecture %s", goarch)
}

// machines are the architectures to admit: the native one always, as in
// libseccomp, and of those that the profile lists the ones that this kernel
// can serve at all; the others can never be seen.
func machines(listed []specs.Arch, goarch string) ([]machine, error) {
	native, others, err := nativeABI(goarch)
	if err != nil {
		return nil, err
	}
	out := []machine{{native.auditArch(), []abi{native}}}
	for _, a := range listed {
		b, known, err := parseArch(a)
		if err != nil {
			return nil, err
		}
		if !known || b == native || !slices.Contains(others, b) {
			continue
		}
		audit := b.auditArch()
		i := slices.IndexFunc(out, func(m machine) bool { return m.audit == audit })
		if i < 0 {
			out = append(out, machine{audit, []abi{b}})
		} else if !slices.Contains(out[i].abis, b) {
			out[i].abis = append(out[i].abis, b)
		}
	}
	return out, nil
}

// parseArch maps an OCI name; known is false for architectures without a table.
func parseArch(a specs.Arch) (b abi, known bool, err error) {
	switch a {
	case specs.ArchX86_64:
		return abiX8664, true, nil
	case specs.ArchX86:
		return abiX86, true, nil
	case specs.ArchX32:
		return abiX32, true, nil
	case specs.ArchAARCH64:
		return abiAArch64, true, nil
	case specs.ArchARM:
		return abiARM, true, nil
	case specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64,
		specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X,
		specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K,
		specs.ArchSH, specs.ArchSHEB:
		return 0, false, nil
	}
	return 0, false, fmt.Errorf("seccomp profile: unknown architecture %q", a)
}

// muxed are i386's calls that are also reached through socketcall(2) and
// ipc(2), with the number that is the first argument there (linux/net.h,
// linux/ipc.h). Sorted by name.
var muxed = [...]struct {
	name, through string
	call          uint32
}{
	{"accept", "socketcall", 5},
	{"accept4", "socketcall", 18},
	{"bind", "socketcall", 2},
	{"connect", "socketcall", 3},
	{"getpeername", "socketcall", 7},
	{"getsockname", "socketcall", 6},
	{"getsockopt", "socketcall", 15},
	{"listen", "socketcall", 4},
	{"msgctl", "ipc", 14},
	{"msgget", "ipc", 13},
	{"msgrcv", "ipc", 12},
	{"msgsnd", "ipc", 11},
	{"recv", "socketcall", 10},
	{"recvfrom", "socketcall", 12},
	{"recvmmsg", "socketcall", 19},
	{"recvmsg", "socketcall", 17},
	{"semctl", "ipc", 3},
	{"semget", "ipc", 2},
	{"semop", "ipc", 1},
	{"semtimedop", "ipc", 4},
	{"send", "socketcall", 9},
	{"sendmmsg", "socketcall", 20},
	{"sendmsg", "socketcall", 16},
	{"sendto", "socketcall", 11},
	{"setsockopt", "socketcall", 14},
	{"shmat", "ipc", 21},
	{"shmctl", "ipc", 24},
	{"shmdt", "ipc", 22},
	{"shmget", "ipc", 23},
	{"shutdown", "socketcall", 13},
	{"socket", "socketcall", 1},
	{"socketpair", "socketcall", 8},
}

// demux says through which call, and as which of its functions, i386 also
// reaches a syscall.
func demux(name string) (through string, call uint32, ok bool) {
	for i := range muxed {
		if muxed[i].name == name {
			return muxed[i].through, muxed[i].call, true
		}
	}
	return "", 0, false
}
