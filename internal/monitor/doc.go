// Package monitor is the process that stays with a container (P1), and the
// stages beside the container's init: the image server (P2), which package holder
// starts, and the network helper (P4). See ARCHITECTURE.md for the tree and for who dies
// when whom dies, and package handoff for the messages.
//
// The monitor lives in the container's user namespace and in the mount namespace
// of its holder. It owns the container's lock: as long as it lives, the container is its
// business; when it is gone, whoever finds the lock free cleans up (Sweep).
package monitor
