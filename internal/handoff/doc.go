// Package handoff starts the stages of a container and carries messages between them.
//
// A stage is this same binary, executed again with a hidden first argument
// (Stage). It finds one end of a SOCK_SEQPACKET socket pair as file descriptor
// 3; everything it needs to know arrives there as messages: a kind, a JSON body,
// and files donated by SCM_RIGHTS. Nothing travels in the environment or in the
// argument list, both of which other users of the host can read.
//
// The messages of a container's start, in order (P0 run, P1 monitor, P2 union,
// P3 init, P4 network; see ARCHITECTURE.md):
//
//	P0 -> P1  request   everything; files: stdin, stdout, stderr, lock
//	P1 -> P2  tree      paths of the merged tree and its layers
//	P1 -> P4  ports     network configuration; P4 binds published ports
//	P1 -> P3  config    the container's set-up
//	P3 -> P1  fuse      file: the FUSE device, mounted;   P1 -> P2  serve
//	P4 -> P1  listening published ports are bound
//	P3 -> P1  ready     files: TUN, pty master;           P1 -> P4  attach
//	P1 -> P3  exec      the state record says "running" from here on
//	P3 -> P1  failed    or the connection closes: the command was executed
//	P1 -> P0  started   file: pty master
//	P0 -> P1  signal    any number of times
//	P1 -> P0  exited    wait status; the container's files are gone or final
package handoff
