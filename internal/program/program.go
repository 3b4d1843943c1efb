// Package program turns a process into a command by a list of system calls that is made up beforehand.
//
// What a container's command may not have (capabilities, ids, open files, system calls) is given up in the last
// moments before execve(2). Run makes these calls in the calling thread. Start makes them in a child between fork(2) and
// execve, where a Go program can run nothing but such a list: of its threads only one is there, which may hold any of the
// runtime's locks. So a command is started with one fork and no runtime of its own between, in the
// namespaces, root directory and working directory of the calling thread.
package program

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Program is a list of system calls. The zero value is empty and ready for use. It must not be copied, and what its
// arguments point to stays where it is: on the heap.
type Program struct {
	calls   []call
	explain []explanation // of calls, where the child has no use for it
	keep    []any         // what the arguments point to
}

// call is one system call, as the child reads it.
type call struct {
	number uintptr
	args   [6]uintptr
	// onLast has the result of the call before in place of the first argument.
	onLast bool
	// tolerated is an error that does not matter; 0: none.
	tolerated unix.Errno
}

type explanation struct {
	what string
	why  func(unix.Errno) error
}

// Do adds a system call. What, a verb and its object, begins the error of its failure; it may be empty.
func (p *Program) Do(what string, number uintptr, args ...uintptr) *Program {
	c := call{number: number}
	copy(c.args[:], args)
	p.calls = append(p.calls, c)
	p.explain = append(p.explain, explanation{what: what})
	return p
}

// OnLast has the call that was added last get the result of the one before it as its first argument.
func (p *Program) OnLast() *Program {
	p.calls[len(p.calls)-1].onLast = true
	return p
}

// Tolerate goes on after an error of the call that was added last.
func (p *Program) Tolerate(errno unix.Errno) *Program {
	p.calls[len(p.calls)-1].tolerated = errno
	return p
}

// Explain gives the failure of the call that was added last the error that why makes of its number.
func (p *Program) Explain(why func(unix.Errno) error) *Program {
	p.explain[len(p.explain)-1].why = why
	return p
}

// Bytes is an argument that points to b, of at least one byte.
func (p *Program) Bytes(b []byte) uintptr {
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// String is an argument that points to s, which has a zero byte put behind it. Zero bytes inside are an error.
func (p *Program) String(s string) (uintptr, error) {
	b, err := unix.ByteSliceFromString(s)
	if err != nil {
		return 0, fmt.Errorf("%q: %w", s, err)
	}
	return p.Bytes(b), nil
}

// Point is an argument that points to *v, which is or has in it no Go pointer but those of a kernel structure.
func Point[T any](p *Program, v *T) uintptr {
	p.keep = append(p.keep, v)
	return uintptr(unsafe.Pointer(v))
}

// strings is an argument that points to a list of pointers, with a nil behind the last: argv or envp.
func (p *Program) strings(list []string) (uintptr, error) {
	pointers, err := syscall.SlicePtrFromStrings(list)
	if err != nil {
		return 0, fmt.Errorf("%q: %w", strings.Join(list, " "), err)
	}
	p.keep = append(p.keep, pointers)
	return uintptr(unsafe.Pointer(&pointers[0])), nil
}

// Execute adds the end of a program: the first of files that may be executed is; a later one's turn comes only where
// one before may not (EACCES). Why explains a failure.
func (p *Program) Execute(files, argv, env []string, why func(unix.Errno) error) error {
	args, err := p.strings(argv)
	if err != nil {
		return err
	}
	vars, err := p.strings(env)
	if err != nil {
		return err
	}
	for i, file := range files {
		name, err := p.String(file)
		if err != nil {
			return err
		}
		p.Do("", unix.SYS_EXECVE, name, args, vars).Explain(why)
		if i < len(files)-1 {
			p.Tolerate(unix.EACCES)
		}
	}
	return nil
}

// failed is the error of call i.
func (p *Program) failed(i int, errno unix.Errno) error {
	e := p.explain[i]
	err := error(errno)
	if e.why != nil {
		err = e.why(errno)
	}
	if e.what == "" {
		return err
	}
	return fmt.Errorf("%s: %w", e.what, err)
}

// ResetSignals gives every signal its default action and unblocks all: the command must not inherit what
// urun's caller ignores (nohup ignores SIGHUP, shells SIGINT for their background jobs). Ignored signals stay ignored
// through execve (signal(7)), and os/signal has no way to undo it. The runtime's own handlers go, too.
func (p *Program) ResetSignals() {
	const setSize = 8
	var defaultAction [4]uint64 // struct sigaction of the kernel: handler SIG_DFL, no flags, empty mask
	action := Point(p, &defaultAction)
	for sig := uintptr(1); sig <= 64; sig++ {
		if sig != uintptr(unix.SIGKILL) && sig != uintptr(unix.SIGSTOP) {
			p.Do("reset signals", unix.SYS_RT_SIGACTION, sig, action, 0, setSize)
		}
	}
	p.Do("reset signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, Point(p, new(uint64)), 0, setSize)
}

// Run makes the calls in this thread, which the caller has locked. It returns only on failure, or if the program
// does not end with an Execute.
func (p *Program) Run() error {
	var r result
	// A thread that is being made while another executes a set-user-ID program would keep it from its user (execve(2)).
	beforeExec()
	run(p.calls, &r)
	afterExec()
	if r.errno != 0 {
		return p.failed(int(r.call), r.errno)
	}
	return nil
}

// result is what became of a program.
type result struct {
	call  uint32
	errno unix.Errno
}

// run makes calls until one fails. It is what a child can do after a fork: it needs no stack, no heap and no lock.
//
//go:norace
//go:nosplit
func run(calls []call, r *result) {
	var last uintptr
	for i := range calls {
		c := &calls[i]
		first := c.args[0]
		if c.onLast {
			first = last
		}
		got, _, errno := syscall.RawSyscall6(c.number, first, c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		if errno != 0 && errno != c.tolerated {
			r.call, r.errno = uint32(i), errno
			return
		}
		last = got
	}
}

// Child is a process that a program was started in.
type Child struct {
	// PID is its number in the caller's pid namespace. It is the caller's child, and the caller's to wait for.
	PID     int
	program *Program
	said    *os.File
}

// Files are what a child has open at its end: 0, 1 and 2. None of them may be nil.
type Files [3]*os.File

// reportFD is where a child has the pipe that tells of its failure, and its end of its success.
const reportFD = 3

// KeptFD is where a child's calls find the file that is kept for them.
const KeptFD = 4

// Start starts the program in a child of its own session, which has the files open, for its calls alone the file kept, which may
// be nil, and nothing else. The child is born
// in the calling thread's namespaces, pid namespace for children included, and in cgroup unless that is nil, which
// takes clone3(2) (Linux 5.7). It is not dumpable until it has executed its command, and
// by then no memory of this process is left in it. Executed says how it went on.
func (p *Program) Start(files Files, kept, cgroup *os.File) (*Child, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	defer w.Close()
	if kept == nil {
		kept = w
	}
	// Either may have the number that the other is to have.
	var high [2]uintptr
	for i, f := range []*os.File{w, kept} {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, KeptFD+1)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start a process: %w", err), r.Close())
		}
		defer unix.Close(fd)
		high[i] = uintptr(fd)
	}
	var begin Program
	begin.keep = p.keep
	// Before anything that has it seen as one that the container may look into.
	begin.Do("make the process undumpable", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	begin.Do("make a session", unix.SYS_SETSID)
	for fd, f := range files {
		begin.Do("set standard files", unix.SYS_DUP3, f.Fd(), uintptr(fd), 0)
	}
	begin.Do("keep files", unix.SYS_DUP3, high[0], reportFD, unix.O_CLOEXEC)
	begin.Do("keep files", unix.SYS_DUP3, high[1], KeptFD, unix.O_CLOEXEC)
	// Without it (an outer container's filter) they are closed by execve, as all of this program's are.
	begin.Do("close files", unix.SYS_CLOSE_RANGE, KeptFD+1, math.MaxInt32, 0).Tolerate(unix.ENOSYS)
	begin.ResetSignals()
	all := &Program{calls: append(begin.calls, p.calls...), explain: append(begin.explain, p.explain...), keep: begin.keep}
	pid, errno := fork(all.calls, cgroup)
	if errno != 0 {
		return nil, errors.Join(fmt.Errorf("start a process: %w", errno), r.Close())
	}
	return &Child{PID: pid, program: all, said: r}, nil
}

// Executed waits until the child has executed its command, and returns nil, or until it has failed to, and returns why.
// It is to be called once. It ends with the child at the latest.
func (c *Child) Executed() error {
	defer c.said.Close()
	var r result
	b := unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))
	switch n, err := c.said.Read(b); {
	case n == len(b):
		return c.program.failed(int(r.call), r.errno)
	case n == 0:
		return nil // closed by execve, or by its death, which has a status
	default:
		return fmt.Errorf("start a process: report of %d bytes: %w", n, err)
	}
}
