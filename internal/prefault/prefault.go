package prefault

import "unsafe"

// enter is the program's entry point. It is not to be called.
//
//lint:ignore U1000 the linker's -E names it
func enter()

// heap is how many bytes of heap are mapped at once, written by enter; zero where the
// program was linked without it.
var heap uintptr

// first lies where the heap's next free span is: nothing of its size was made before.
//
//lint:ignore U1000 it keeps what begin makes on the heap
var first = begin()

func begin() *[64]uintptr {
	p := new([64]uintptr)
	if heap != 0 {
		// The runtime has mapped at least 4 MB from here on; 64 kB are the largest page there is.
		populate(uintptr(unsafe.Pointer(p))&^(1<<16-1), heap)
	}
	return p
}

// populate makes the kernel map n bytes at p, to be written to.
//
//go:noescape
func populate(p, n uintptr) (errno uintptr)
