// Package slirp is the network of a container that needs no privilege: a process in the host's network namespace, joined to the
// container by a TUN device, that makes the container's connections its own. Where there is no TUN, a packet socket is one (veth.go).
//
// # Two drivers
//
// What they differ in is the container's outgoing TCP. All else, UDP, ICMP echo, DNS, published ports, is the same in both.
//
//   - DriverKernel: connections end at listeners in the container's own network namespace, to which nftables rules there redirect
//     them, and the helper splices kernel socket to kernel socket. No TCP is spoken in user mode. See kernelTCP.
//   - DriverNetstack: gVisor's TCP/IP stack, on the TUN. It needs nothing but /dev/net/tun.
//
// Two more are programs of others, pasta and slirp4netns, which this package only knows how to find and to call (external.go).
//
// PrepareKernel sets the first up, or fails where the kernel lacks what it takes; then there is the second. A running helper changes
// to the second by itself when the rules are taken away, or when the container's kernel takes none of the connections that it is offered.
//
// # Two processes
//
//	container's network namespace            host's network namespace
//	Configure: lo, tun0, addresses, routes   Listen: published ports are bound
//	      |                                        |
//	      +------------- TUN fd ------------> Attach: stack on the TUN
//	                                               Lockdown: nothing more is needed
//	                                               Serve: packets, until the end
//
// PrepareKernel, whenever whoever holds CAP_NET_ADMIN over the namespace finds the time, adds what DriverKernel needs: its
// files go to the helper too (UseKernel).
//
// Configure runs in the container's init, on a locked OS thread with CAP_NET_ADMIN over its network namespace.
// It does everything in one netlink message and waits for nothing. New (or Listen and Attach) and Serve run in
// the helper, which holds all policy and all host sockets and no capability.
//
// The TUN keeps its network namespace alive as long as anybody holds its fd (tun_chr_open takes a reference), so
// the helper does not see the container end: whoever started it cancels Serve's context or kills it. A helper that
// died can be replaced by a new one on another descriptor of the same TUN. No state is carried over: the new
// stack answers segments of the old one's connections with resets.
//
// # What happens to a packet
//
// Each packet read from the TUN is first held against the policy (policy.go), the only place where
// addresses are judged:
//
//   - The source must be the container's own address.
//   - The gateway and the resolver are the stack's own. With AllowHostLoopback the gateway stands for the host's
//     127.0.0.1 and ::1; without it, it refuses like a host on which nobody listens.
//   - Loopback, link-local and unspecified destinations are answered with "administratively prohibited", in
//     every form in which they can be written: v4-mapped, v4-compatible, behind a NAT64 or 6to4 prefix. So
//     are other addresses of the TUN's own prefix. Groups are dropped.
//   - Everything else, the host's own addresses included, is reached as from a process of the user on the host.
//
// TCP: the SYN waits until the host side is connected, so refused is a reset and
// unreachable is an ICMP message inside, as outside. With DriverKernel the SYN then goes back into the TUN and is redirected;
// the two sockets belong to one of a few event loops (relay.go; WantedProcs says what they want of the process). With DriverNetstack it goes to the stack; each flow is two goroutines that move bytes between the two
// sockets, without a buffer of their own while they wait. Memory is bounded by the two sockets' buffers; a slow
// reader on one side closes the window of the other. FIN and RST are passed on as what they are.
//
// UDP goes past netstack, except for reassembly of fragments: one connected host socket for each flow, closed
// when idle. ICMP errors on it come back inside. Echo requests go out through ping sockets where
// net.ipv4.ping_group_range lets the user have them; an answer is never made up.
//
// DNS to the resolver's address is handed to the host's resolvers message for message, after the configured names. With DriverKernel the
// loop that reads the TUN does that too.
//
// # Published ports
//
// A connection to a published port is accepted on the host and made again through the stack from the client's own
// address, so that servers inside see who calls. A client that the container could not answer at its own address (one
// on the host's loopback, a link-local one, one in the TUN's prefix) appears as the gateway. The same goes for
// datagrams, whose answers leave from the address that the client had sent to.
//
// With DriverKernel the connection into the container is that of a kernel socket which binds the client's address (IP_TRANSPARENT);
// whoever called PrepareKernel makes such sockets on request, some at a time, on a SOCK_SEQPACKET pair (kpool.go). Their packets
// carry a mark, by which they and the answers stay on loopback.
//
// # The end
//
// When the container's processes have ended, Drain has what they sent passed on, down to a datagram that is still in the TUN, before Serve ends: a
// kernel delivers what is left by processes that have ended, and the helper is a part of the way.
//
// # Segmentation offload
//
// The TUN has virtio headers (link.go): the kernel hands over and takes TCP segments of up to 64 KiB whatever the
// MTU, with the checksum left out. That is why an MTU of 1500 costs nothing here, and larger ones, which make
// black holes for UDP, are not needed.
//
// # Bounds
//
// Flows, half-open connections, queries and bytes in flight have limits (Config). Over them, a SYN or datagram is
// dropped and comes again; established flows are not touched. DriverKernel takes two descriptors for a flow: from a quarter of RLIMIT_NOFILE
// on, connections take the stack, with one each.
package slirp
