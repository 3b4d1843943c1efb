// Package holder keeps a user namespace alive between containers.
//
// A holder is a process (the stage __holder) in a user namespace and a mount
// namespace of its own, started by the first command that wants a container
// with that id map. Later commands ask it to start their monitors, which then
// live in its namespaces: newuidmap and newgidmap run once and not for each
// container, and containers can share what lives in the user namespace. It has no
// policy and keeps no state: if it is killed, running containers go on, and the
// next command starts another. It ends some time after its last container.
//
// Under it run the image servers (the stage __union), one for each image. A
// monitor that asks for an image gets a clone of its server's mount, so that
// all containers of an image share what the kernel has cached of it; it is in
// use as long as the monitor's channel is open, and stays for a time after that.
//
// # Which holder
//
// A monitor that a holder starts inherits from the holder what a process
// inherits: namespaces, cgroup, limits, affinity, groups and so on. A container
// must not see the difference to a monitor that the command itself had started.
// So a holder serves only commands that have all of that in common with the one
// that started it, and the same binary: Key is a digest of these things, the
// holder's name. Commands of different batch jobs, for instance, have
// different cgroups and thus different holders.
//
// # Where
//
// The holder of a key listens on the socket "door" in the directory KEY, below
// the first of these that can be used: $XDG_RUNTIME_DIR/urun, /tmp/urun-UID, and
// the directory "run" of the store. Each must belong to the user and be closed
// to others. The directory KEY is locked (flock) as long as a
// holder is starting or lives; one whose lock is free is left over from a holder
// that was killed, and whoever gets the lock removes it or starts a new one in it.
// Beside the socket is the file "stderr": what the holder, the image servers and the
// monitors of detached containers have to say when they crash, or get SIGQUIT.
//
// # Who may ask
//
// Processes of the same uid from the user namespace that the holder was
// started from; root of a container is none of them: see handoff.Door.
//
// # Where the code runs
//
// Main in the holder, Link in monitors, the rest in commands.
package holder
