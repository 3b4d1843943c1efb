package handoff

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Both ways of CloseOnExec; in a process of its own, whose other files do not matter.
func TestFilesAreKeptFromWhatIsExecutedNext(t *testing.T) {
	const inside = "URUN_HANDOFF_INSIDE"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for name, mark := range map[string]func() error{
		"close_range":           CloseOnExec,
		"before that has flags": func() error { return errors.Join(markEach(), closeFrom(marked)) },
	} {
		const low, high = 700, 1500
		for _, fd := range []int{low, high} {
			if err := unix.Dup3(0, fd, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := mark(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, fd := range []int{low, high} {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if closed := errors.Is(err, unix.EBADF); !closed && (err != nil || flags&unix.FD_CLOEXEC == 0) {
				t.Errorf("%s: file %d goes on: flags %#x, %v", name, fd, flags, err)
			}
		}
		if flags, err := unix.FcntlInt(0, unix.F_GETFD, 0); err != nil || flags != 0 {
			t.Errorf("%s: standard input has flags %#x, %v", name, flags, err)
		}
	}
}
