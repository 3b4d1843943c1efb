package thrift

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// idleTime is how long nothing must have happened before memory is given back.
const idleTime = 2 * time.Second

// Thrift gives memory back when the process has been idle. The zero value is ready.
type Thrift struct {
	mu    sync.Mutex
	timer *time.Timer
}

// Busy says that something happens, which puts giving back off.
func (t *Thrift) Busy() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer == nil {
		t.timer = time.AfterFunc(idleTime, GiveBack)
		return
	}
	t.timer.Reset(idleTime)
}

// GiveBack gives memory back now.
func GiveBack() {
	debug.FreeOSMemory()
	// Where /proc can not be read the binary's pages stay mapped: no harm is done.
	raw, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for _, m := range fileMappings(string(raw)) {
		// Clean pages of a file: the next access maps them again (madvise(2)).
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// fileMappings are, of what /proc/self/maps says (proc_pid_maps(5)), the mappings of
// files that can not be written to, and so are as the file is.
func fileMappings(maps string) []mapping {
	var all []mapping
	for line := range strings.Lines(maps) {
		f := strings.Fields(line) // range, permissions, offset, device, inode, path
		if len(f) < 5 || f[4] == "0" || strings.Contains(f[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			continue
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			continue
		}
		all = append(all, mapping{uintptr(start), uintptr(end)})
	}
	return all
}
