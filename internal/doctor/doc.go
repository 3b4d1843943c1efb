// Package doctor finds out what of this machine keeps urun from working, or from
// working as it should, and what cures it.
//
// It finds by trying, as the user who asks: a kernel forbids a thing in a dozen
// ways (sysctls, seccomp, a security module, a missing device, a masked /proc), and only
// the attempt shows whether it works. What cannot be tried is read. The attempts
// are made by a stage of the binary in new namespaces (Stage), so nothing of them is
// left when it ends; the one directory that is needed on disk is removed again.
//
//	Observe   tries and reads; answers an Observation, which holds facts alone
//	Diagnose  turns facts into Findings: a pure function, tested by injected facts
//
// The package is used by urun doctor, in the command's process and one stage.
package doctor
