// Package thrift makes a long-lived stage give back the memory that its start, and
// what it was asked for since, took. A stage does little for most of its life, and a
// user may have hundreds.
//
// What it gives back is of two kinds. The heap's free pages go to the kernel; and the
// pages of the binary, which all stages map, are unmapped: they stay in the page cache,
// where the kernel may drop them, and come back by minor faults where the stage
// needs them again. An idle stage then holds a few of its 20 MB.
//
// It runs in the monitor, the holder and the image servers; in the network stages once, after their start.
package thrift
