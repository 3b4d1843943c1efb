// Package userns plans the id maps of user namespaces and starts processes in
// new ones, as an ordinary user and without any setuid program of its own.
//
// # What a user namespace gives
//
// A process in a user namespace of its own has all capabilities over that
// namespace and over every other namespace created from within it, and none
// outside. Its user and group ids are translated by two tables, uid_map and
// gid_map, each written once, from outside or inside, by whom the kernel trusts
// (user_namespaces(7)):
//
//   - anybody may map one id: his own, to any number. For groups this takes
//     giving up setgroups(2) first (/proc/PID/setgroups = deny, Linux 3.19),
//     because a group may serve to deny access;
//   - more ids need CAP_SETUID or CAP_SETGID in the parent namespace. Ordinary
//     users borrow it from newuidmap(1) and newgidmap(1), which let a user map
//     what /etc/subuid and /etc/subgid (or the nss source of subid) grant him.
//
// # The order of events in Start
//
//	parent                                     child
//	clone(NEWUSER|...)                         (ids are still unmapped: 65534)
//	                                           raises all capabilities into its ambient set
//	                                           execve; Go's runtime starts
//	newuidmap and newgidmap, side by side      waits for a message of its parent
//	Start returns; parent sends the message    works
//
// execve drops the capabilities of a process whose uid is not 0 in its
// namespace, and an unmapped uid is not. The ambient set (Linux 4.3) survives
// execve, so the child needs no second execve once its maps are there. The price:
// the ambient set would leak into the container's command, so whoever executes
// that calls [DropAmbient] first.
//
// Until Start returns, files that the child creates fail with EOVERFLOW, so a
// child must do nothing before it hears from its parent.
//
// # Host numbers
//
// The "host" side of a [Map] is what the calling process sees, which is itself
// a user namespace when urun runs within a container. The kernel maps a range only
// if it lies in one single range of the parent's own map; [Plan] splits ranges
// at those borders.
//
// # Where the code runs
//
// [Plan] and [Start] run in the process that the user started. [SetPdeathsig],
// [DropAmbient] and [CloneExe] are for the processes within the new namespace.
// Nothing here is global, prints, or ends the process.
package userns
