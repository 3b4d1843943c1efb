//go:build cgo

package main

// builtWithCgo: the stages change the credentials of all their threads, which
// the Go runtime can not do for threads that C code made
// (syscall.AllThreadsSyscall answers ENOTSUP).
const builtWithCgo = true
