// Package files gives a command access to the files of a container, whether it
// runs or not: for cp, diff, export and commit.
//
// The work is done by a stage, __files, in the container's user namespace, so
// that owners are what they are inside, and files of every id can be read and made:
//
//   - of a container that runs, the stage is started by its monitor. A thread of
//     it enters the container's mount namespace for long enough to open the root;
//   - of one that does not, the stage is started in a new user namespace with the
//     container's map and a mount namespace of its own. It puts the parked writable
//     layer back, mounts the union as a start would, volumes included, and parks the
//     layer again in the end.
//
// So both kinds of writable layer look the same from here. What is seen is a
// directory tree that a program inside may be changing: package archive treats it so.
//
//	P0 -> __files  enter     a pidfd of the container's init, or
//	               mount     what a container that does not run is made of
//	__files -> P0  ready
//	P0 -> __files  stat, write (a pipe), extract (a pipe), mkdir, changes, layer (a pipe); each is answered
//	__files -> P0  done      with the answer, or failed
package files
