// Package cgdelegate gets a cgroup v2 subtree that an ordinary user may manage,
// sets limits in it, and reads, freezes and kills what runs there.
//
// # Delegation
//
// The cgroup tree belongs to one writer, usually systemd (its document
// CGROUP_DELEGATION). A user gets a part of it by asking his own systemd manager over
// D-Bus for a transient scope with Delegate=yes: the scope's directory is then
// his, and systemd keeps out of it. Which controllers (memory, cpu, pids, io,
// cpuset) work in it depends on what user@UID.service was given: Debian's systemd
// 252 gives cpu, memory and pids.
//
// Where no systemd answers, the cgroup that this process lives in may be writable
// already: a step of a batch system, a container with a cgroup namespace. Then a
// directory is made in it. What lives there moves to a leaf "urun.others" as long as there are scopes with
// controllers, and back with the last of them. Where neither is so, there is no cgroup, and [Create]
// says why with an [UnavailableError].
//
// # Layout
//
//	urun-ID.scope/            cgroup.subtree_control: the controllers in use
//	  supervisor/             Options.PIDs: not limited, so that the supervisor lives to
//	                          tell that the payload was killed
//	  payload/                the limits; the processes of the container
//
// A cgroup v2 cgroup holds either processes or children with controllers (the "no
// internal processes" rule of the kernel's cgroup-v2.rst), so the processes
// must be in the supervisor leaf before a controller is enabled.
//
// A process is best born in the payload leaf: clone3 with CLONE_INTO_CGROUP
// (Linux 5.7; SysProcAttr.UseCgroupFD with [Scope.PayloadFD]). A cgroup
// namespace has its root at the cgroup of whom unshares it; clone3 would take the
// parent's, so the child itself unshares after it was born.
//
// The container's root may be the owner of the payload leaf and could lift its own
// limits if it could write there: give it a writable cgroup mount only where
// cgroup2 is mounted with nsdelegate (systemd does), which forbids that.
//
// # The end
//
// When the last process of a systemd scope is gone, systemd removes the scope
// with all that is in it, also after kill -9 of everybody. Without systemd nobody
// does: [Scope.Remove], from any process, after [Open] with the recorded path.
//
// # Time
//
// A job of systemd takes 5 to 250 ms; call [Create] beside other work. All calls
// that wait have a time limit: the context's, else [DefaultTimeout].
package cgdelegate
