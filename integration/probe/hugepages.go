package main

import (
	"fmt"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// hugePages writes to huge pages of 2 MB, one after the other, and prints how many it was given: what is above the limit
// is a SIGBUS (hugetlb.2MB.max counts pages when they are touched).
func hugePages(args []string) (err error) {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	const size = 2 << 20
	mem, err := unix.Mmap(-1, 0, n*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
	if err != nil {
		return fmt.Errorf("map %d huge pages: %w", n, err)
	}
	got := 0
	func() {
		debug.SetPanicOnFault(true)
		defer func() { _ = recover() }()
		for ; got < n; got++ {
			mem[got*size] = 1
		}
	}()
	fmt.Printf("%d of %d\n", got, n)
	return nil
}
