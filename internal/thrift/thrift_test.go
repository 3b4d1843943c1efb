package thrift

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestOnlyMappingsOfFilesThatCanNotBeWrittenAreGivenBack(t *testing.T) {
	got := fileMappings(`00400000-00a00000 r-xp 00000000 fe:00 1234 /usr/bin/urun
00a00000-00b00000 r--p 00600000 fe:00 1234 /usr/bin/urun
00b00000-00b10000 rw-p 00700000 fe:00 1234 /usr/bin/urun
c000000000-c000400000 rw-p 00000000 00:00 0
7f0000000000-7f0000010000 r--s 00000000 fe:00 99 /store/trees/x y
7ffd0000-7ffe0000 r-xp 00000000 00:00 0 [vdso]
nonsense
`)
	want := []mapping{{0x400000, 0xa00000}, {0xa00000, 0xb00000}, {0x7f0000000000, 0x7f0000010000}}
	if !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// resident is how much of files this process has mapped, in kB.
func resident(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(raw), "RssFile:")
	if !ok {
		t.Skip("this kernel does not tell RssFile")
	}
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestGivingBackUnmapsTheBinaryAndTheProcessGoesOn(t *testing.T) {
	// All of the binary has been looked at.
	exe, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if len(fileMappings(string(exe))) == 0 {
		t.Fatal("the binary's own mappings were not found")
	}
	before := resident(t)
	GiveBack()
	after := resident(t)
	if after >= before {
		t.Errorf("%d kB of files were mapped, and then %d", before, after)
	}
	// Everything still works: text and constants come back.
	if got := strings.Repeat(strconv.Itoa(12), 2); got != "1212" {
		t.Errorf("got %s", got)
	}
}
