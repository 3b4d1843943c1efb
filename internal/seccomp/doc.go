// Package seccomp turns an OCI seccomp profile into a classic BPF program and
// installs it, without cgo and without libseccomp.
//
// Three steps, of which only the last makes a system call:
//
//	profile := seccomp.Default()                                // or Load
//	rules, err := seccomp.Resolve(profile, caps, host)          // drop what does not apply here
//	program, flags, err := seccomp.Compile(rules)               // BPF
//	err = program.Install(flags)                                // on this thread
//
// Resolve and Compile run in the command (P0), which knows the capabilities;
// the program travels to the container's init (P3) as bytes, and Install is
// the last thing init does on the thread that executes the payload.
//
// # What the program looks like
//
// The architecture is checked first, then the syscall number is found by a
// binary search over ranges of numbers with the same outcome, so a syscall
// costs about seven jumps rather than one per rule. Only loads of nr and
// arch, conditional jumps and returns are on the path of a syscall that is
// always allowed: that is what the kernel (5.11 and later, seccomp_is_const_allow)
// can evaluate ahead and answer from a bitmap without running the program.
//
// # Semantics, where the OCI text leaves them open
//
// They are libseccomp's as runc and crun use it:
//
//   - A rule without arguments wins over rules with arguments for the same
//     syscall, wherever it stands; of several, the first counts.
//   - Rules with arguments are tried in the order of the profile. (libseccomp
//     sorts them by argument; it matters only where rules with different
//     actions overlap.)
//   - The arguments of one rule are ANDed. A rule that names the same argument
//     twice is split into one rule an argument, as runc does.
//   - A rule whose action is the default action is dropped.
//   - Names that an architecture does not have are ignored.
//   - Arguments of the 32 bit ABIs (and of x32) are compared in their low half.
//   - On i386, a rule for a call behind socketcall(2) or ipc(2) is applied to
//     these as well. A rule with arguments cannot see them there: it then
//     denies the whole call or, where it would allow, is not applied.
//   - A syscall newer than every syscall that the profile names gets ENOSYS, so
//     that programs fall back, instead of the default action (runc's
//     patchbpf does the same). Not where the default action lets calls pass.
//   - An architecture that the profile does not list kills the process.
package seccomp
