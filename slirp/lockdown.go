package slirp

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Lockdown takes from the calling process what the helper does not need once New has returned: capabilities, gaining
// privilege by execve, being traced or dumped by other processes of the user, writing to the file system,
// and the system calls of denied. Files stay readable, for resolv.conf. Landlock and seccomp are left out
// where the kernel lacks them; anything else that fails is an error.
//
// Capabilities, no_new_privs and Landlock belong to a thread: each is set on every thread of the process, which the
// Go runtime can do only without cgo.
func Lockdown() error {
	if err := allThreads("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("set not dumpable: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	if err := denyWrites(); err != nil {
		return err
	}
	return denyCalls()
}

func allThreads(what string, trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

func dropCapabilities() error {
	// Ambient capabilities go with the permitted ones (capabilities(7)); the bounding set does not matter under
	// no_new_privs.
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return allThreads("drop capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
}

// denyWrites forbids every change to the file system through Landlock (kernel 5.13). Only the rights of its first
// version are used: writing, making and removing.
func denyWrites() error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno == unix.ENOSYS || errno == unix.EOPNOTSUPP {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("find landlock version: %w", errno)
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_EXECUTE |
		unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM}
	if version >= 2 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	// The first member of the structure is the whole of it in version 1, and every kernel takes it.
	size := unsafe.Sizeof(attr.Handled_access_fs)
	if version >= 6 {
		// Not LANDLOCK_SCOPE_SIGNAL: the runtime's threads, each in a domain of its own, signal each other.
		attr.Scoped, size = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, unsafe.Sizeof(attr)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("make landlock ruleset: %w", errno)
	}
	err := allThreads("apply landlock ruleset", unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
	return errors.Join(err, unix.Close(int(fd)))
}

// denied are system calls that a process which only moves packets never makes, and that lead out of one that was
// taken over. A list of what is allowed would be shorter only until the next Go runtime.
func denied() []uint32 {
	return []uint32{
		unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
		unix.SYS_KCMP, unix.SYS_PIDFD_GETFD, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_CHROOT, unix.SYS_PIVOT_ROOT,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSMOUNT,
		unix.SYS_FSCONFIG, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN,
		unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
		unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SETTIMEOFDAY,
		unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME, unix.SYS_PERSONALITY, unix.SYS_SYSLOG,
	}
}

// denyCalls installs the seccomp filter on all threads at once (SECCOMP_FILTER_FLAG_TSYNC). A denied call fails
// with EPERM; a call of a foreign architecture kills.
func denyCalls() error {
	prog := filter(denied())
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if errno == unix.ENOSYS || errno == unix.EINVAL {
		return nil // a kernel without CONFIG_SECCOMP_FILTER
	}
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	return nil
}

// filter is the classic BPF program: load the architecture, then the number, compare, return.
//
// Sockets can be made of IPv4 and IPv6 only: those of the user's other services (AF_UNIX: D-Bus, container engines, displays) and
// the kernel's own (AF_NETLINK, AF_PACKET) are out of reach.
func filter(calls []uint32) []unix.SockFilter {
	const nrOffset, archOffset, arg0Offset = 0, 4, 16 // of struct seccomp_data; all machines here have the low half first
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	ret := func(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }
	prog := []unix.SockFilter{
		load(archOffset),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: auditArch, Jt: 1},
		ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(nrOffset),
	}
	if x32Bit != 0 {
		// Numbers with this bit are the same calls by another name.
		prog = append(prog, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32Bit, Jf: 1},
			ret(unix.SECCOMP_RET_KILL_PROCESS))
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	const after = 5 // instructions between the list and the denial
	for i, nr := range calls {
		prog = append(prog, equal(nr, uint8(len(calls)-i-1+after), 0))
	}
	return append(
		prog,
		equal(unix.SYS_SOCKET, 0, 3),
		load(arg0Offset),
		equal(unix.AF_INET, 1, 0),
		equal(unix.AF_INET6, 0, 1),
		ret(unix.SECCOMP_RET_ALLOW),
		ret(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)),
	)
}
