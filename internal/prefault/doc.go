// Package prefault maps what the start of every urun touches, in a few system calls, before it is
// touched.
//
// A short command's time is that of its page faults: the runtime's start and the packages' init
// functions touch most of the binary's text, and some hundred fresh pages of heap, one fault each.
// A fault costs a microsecond, on machines without nested page tables or below another hypervisor
// twenty to fifty. madvise(2) with MADV_POPULATE_READ and MADV_POPULATE_WRITE (Linux 5.14) maps the same
// pages for a tenth of a microsecond each; an older kernel refuses, and then faults come as always.
//
// There are two moments. The program's entry point (the Makefile's -E) maps the binary, and goes on to
// userns.enter and so to the runtime. Then the first init function asks for the heap, of which nothing
// is there before. For that it has to run before those of other packages, which
// are initialized in the order of their import paths as far as their dependencies
// allow (since Go 1.21): so this package imports nothing, hence the assembly.
//
// Stages, of which some live long, get less: what all of them use for certain. What of the
// binary they have mapped they give back when they are idle (internal/thrift).
package prefault
