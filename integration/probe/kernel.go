package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func openPath(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// calls are system calls with arguments that either do what the default profile denies or are harmless.
var calls = map[string]func() error{
	"unshare-user": func() error { // by clone: unshare wants a process of one thread
		cmd := exec.Command("/proc/self/exe", "try", "getpid")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
		return cmd.Run()
	},
	"unshare-net": func() error { return unix.Unshare(unix.CLONE_NEWNET) },
	"mount":       func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") },
	"umount":      func() error { return unix.Unmount("/proc", unix.MNT_DETACH) },
	"pivot_root":  func() error { return unix.PivotRoot("/", "/tmp") },
	"open_tree":   func() error { return raw(unix.SYS_OPEN_TREE, at(unix.AT_FDCWD), str("/"), 1) },
	"fsopen":      func() error { return raw(unix.SYS_FSOPEN, str("tmpfs"), 0, 0) },
	"setns":       func() error { return raw(unix.SYS_SETNS, ^uintptr(0), 0, 0) },
	"keyctl":      func() error { return raw(unix.SYS_KEYCTL, 0, 0, 0) },
	"add_key":     func() error { return raw(unix.SYS_ADD_KEY, str("user"), str("x"), 0) },
	"request_key": func() error { return raw(unix.SYS_REQUEST_KEY, str("user"), str("x"), 0) },
	"bpf":         func() error { return raw(unix.SYS_BPF, 0, 0, 0) },
	"perf":        func() error { return raw(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0) },
	"kexec":       func() error { return raw(unix.SYS_KEXEC_LOAD, 0, 0, 0) },
	"init_module": func() error { return raw(unix.SYS_INIT_MODULE, 0, 0, 0) },
	"reboot":      func() error { return raw(unix.SYS_REBOOT, 0, 0, 0) },
	"swapon":      func() error { return raw(unix.SYS_SWAPON, str("/x"), 0, 0) },
	"settime":     func() error { return raw(unix.SYS_CLOCK_SETTIME, 0, 0, 0) },
	"io_uring":    func() error { return raw(unix.SYS_IO_URING_SETUP, 0, 0, 0) },
	"userfaultfd": func() error { return raw(unix.SYS_USERFAULTFD, 0, 0, 0) },
	"mknod-block": func() error { return unix.Mknod("/tmp/blk", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))) },
	"mknod-null":  func() error { return unix.Mknod("/tmp/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
	"clone3":      func() error { return raw(unix.SYS_CLONE3, 0, 0, 0) },
	"getpid":      func() error { return raw(unix.SYS_GETPID, 0, 0, 0) },
	"chown":       func() error { return errors.Join(os.WriteFile("/tmp/c", nil, 0o600), unix.Chown("/tmp/c", 12, 34)) },
	"setuid":      func() error { return raw(unix.SYS_SETUID, 65534, 0, 0) },
	"sethostname": func() error { return unix.Sethostname([]byte("changed")) },
	"raw-socket": func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	},
	"vsock": func() error {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	},
	"tiocsti": func() error {
		c := byte('x')
		return raw(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&c)))
	},
}

func raw(nr, a, b, c uintptr) error {
	if _, _, errno := unix.Syscall(nr, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

func at(fd int) uintptr { return uintptr(fd) }

func str(s string) uintptr {
	b := append([]byte(s), 0)
	pinned = append(pinned, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// pinned keeps what system calls point at: Go's collector does not see a uintptr.
var pinned [][]byte

// try makes system calls by name and prints each with the name of its errno, or OK.
func try(args []string) error {
	for _, name := range args {
		call := calls[name]
		if call == nil {
			return fmt.Errorf("no system call %s", name)
		}
		var errno unix.Errno
		switch err := call(); {
		case err == nil:
			fmt.Println(name, "OK")
		case errors.As(err, &errno):
			fmt.Println(name, unix.ErrnoName(errno))
		default:
			return err
		}
	}
	return nil
}

// sysv makes a System V shared memory segment if a key is given, then lists all that are there.
func sysv(args []string) error {
	if len(args) > 0 {
		key, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		if _, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|0o600); err != nil {
			return err
		}
	}
	table, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimSpace(string(table)), "\n")[1:] {
		fmt.Println("key", strings.Fields(line)[0])
	}
	return nil
}

func mqueue(args []string) error {
	flags := uintptr(unix.O_RDWR)
	if args[1] == "create" {
		flags |= unix.O_CREAT
	}
	_, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, str(args[0]), flags, 0o600, 0, 0, 0)
	if errno != 0 {
		fmt.Println(args[0], unix.ErrnoName(errno))
		return nil
	}
	fmt.Println(args[0], "opened")
	return nil
}

// xattrs gives a file's extended attributes, sorted, values quoted.
func xattrs(path string) (string, error) {
	size, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || size == 0 {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("listxattr %q: %w", path, err)
	}
	buf := make([]byte, size)
	if size, err = unix.Llistxattr(path, buf); err != nil {
		return "", fmt.Errorf("listxattr %q: %w", path, err)
	}
	var all []string
	for _, name := range bytes.Split(bytes.TrimRight(buf[:size], "\x00"), []byte{0}) {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return "", fmt.Errorf("getxattr %q %s: %w", path, name, err)
		}
		all = append(all, fmt.Sprintf("%s=%x", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, ","), nil
}
