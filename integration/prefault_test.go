package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// What a start touches is mapped by the entry point, which the linker has to be told: of the text of a command
// that has just begun all is mapped.
func TestTheEntryPointMapsTheBinary(t *testing.T) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	if err := unix.Madvise(page, unix.MADV_POPULATE_READ); err != nil {
		t.Skipf("this kernel has no MADV_POPULATE_READ (Linux 5.14): %v", err)
	}
	cmd := exec.Command(harness.Binary, "events")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var size, resident int
	harness.Eventually(t, 10*time.Second, "the text is mapped", func() bool {
		smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range strings.Split(string(smaps), "VmFlags:") {
			if strings.Contains(m, " r-xp ") && strings.Contains(m, harness.Binary) {
				fmt.Sscanf(m[strings.Index(m, "\nSize:"):], "\nSize: %d", &size)
				fmt.Sscanf(m[strings.Index(m, "\nRss:"):], "\nRss: %d", &resident)
				return resident >= size-64 // the headers before the text are not asked for
			}
		}
		return false
	})
	t.Logf("%d of %d kB", resident, size)
}
