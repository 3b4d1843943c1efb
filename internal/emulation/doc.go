// Package emulation gives a container that has one id what package managers and
// services expect of root: other users.
//
// A user without subordinate ids can map one uid and one gid into a user namespace
// (user_namespaces(7)). There chown(2) to another id, setuid(2) and setgroups(2) fail,
// and with them most of what installs packages. With a filter of seccomp.Emulation
// the container's processes stop at these calls until the supervisor, which runs in
// the monitor (P1), has answered them (seccomp_unotify(2)). This works for every
// program, statically linked ones included, needs no privilege and no preloaded
// library, and costs other calls nothing.
//
// # What is remembered, and where
//
//   - Who a process is: in its limit RLIMIT_LOCKS, which no kernel since 2.4.25 looks
//     at. The kernel hands it on by fork and execve, to all threads, exactly as it
//     does with ids, so that nothing has to be followed. A Token holds the ids that
//     files are made with, and the number of the rest in the supervisor's table.
//   - Who owns a file: in the union (fuseunion.UnionOptions.Emulate). The supervisor
//     sets fuseunion.OwnerXattr, which takes CAP_SYS_ADMIN in the user namespace, and
//     the union shows files of unmapped ids with the block size fuseunion.OwnedBlksize:
//     so the supervisor knows without asking which few files it has to ask about.
//
// # What it is not
//
// The kernel knows nothing of all this: for it every process of the container is the
// same user. So ids that are emulated keep nobody from anything; they are no
// boundary inside the container. See SECURITY.md.
//
// What the supervisor reads of a process may change under it (seccomp_unotify(2)).
// It decides about nothing that the process could not do anyway: it makes the calls
// itself, on files reached from the process's own root and working directory.
package emulation
