package program

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of the kernel, version 2.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// fork runs calls in a child, whose memory is a copy of this process's.
//
// Not by vfork(2), as package syscall starts processes: the child would be in another cgroup than the memory that it
// runs in, and when that cgroup is out of memory the kernel ends all who share it. And execve of a file that a stalled file
// system serves would stop this process, whose scheduler waits for the thread. The price is the copy of page tables, a few
// tenths of a millisecond for a process of some megabytes.
//
//go:norace
func fork(calls []call, cgroup *os.File) (pid int, errno unix.Errno) {
	var r result
	report, size := uintptr(unsafe.Pointer(&r)), unsafe.Sizeof(r)
	number, args, length := uintptr(unix.SYS_CLONE), uintptr(unix.SIGCHLD), uintptr(0)
	var a cloneArgs
	if cgroup != nil {
		a = cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(cgroup.Fd())}
		number, args, length = unix.SYS_CLONE3, uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a)
	}
	// As in package syscall: signals are blocked until the child has no handlers.
	beforeFork()
	child, _, errno := syscall.RawSyscall6(number, args, length, 0, 0, 0, 0)
	if child != 0 || errno != 0 {
		afterFork()
		return int(child), errno
	}
	afterForkInChild()
	run(calls, &r)
	// A Write that fails has nobody to tell: then the status says that something did.
	_, _, _ = syscall.RawSyscall6(unix.SYS_WRITE, reportFD, report, size, 0, 0, 0)
	for {
		_, _, _ = syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 125, 0, 0, 0, 0, 0)
	}
}

// What the runtime has for package syscall, and keeps for others that fork (its comments name gVisor).

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

//go:linkname beforeExec syscall.runtime_BeforeExec
func beforeExec()

//go:linkname afterExec syscall.runtime_AfterExec
func afterExec()
