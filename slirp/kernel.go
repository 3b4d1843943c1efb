package slirp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The drivers that this package has. The rest of the ladder is programs of others, and no network at all.
const (
	// DriverKernel: outgoing TCP is spliced between kernel sockets (kernelTCP); everything else is as with DriverNetstack.
	DriverKernel = "kernel"
	// DriverNetstack: all TCP is gVisor's stack's, on the TUN.
	DriverNetstack = "netstack"
)

const (
	// relayPort is that of the listeners in the container's network namespace: a port below 1024, so that the kernel never
	// chooses it, and one that nobody uses (RFC 1078).
	relayPort = 1
	// relayBacklog is as high as net.core.somaxconn lets it be.
	relayBacklog = 4096
)

// Redirect is what the driver "kernel" needs of the container's network namespace: sockets that were made there. Their place is
// in the helper (Network.UseKernel); whoever starts helpers keeps them beside the TUN.
type Redirect struct {
	// Files are the listeners that redirected connections arrive at, IPv4 and then IPv6 if there is one; a netlink socket that
	// tells of changes to the rules; one that owns them, with whose last descriptor they go; and, if published ports can be the
	// kernel's too, one on which the helper asks for sockets. That one is answered as long as this process lives.
	Files []*os.File
}

// listeners is how many of the files are listeners: as many as there are families, which the first two tell.
func (r *Redirect) listeners() int {
	n := 0
	for n < len(r.Files) && n < 2 {
		if v, err := unix.GetsockoptInt(int(r.Files[n].Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || v == 0 {
			break
		}
		n++
	}
	return n
}

func (r *Redirect) check() error {
	if n := r.listeners(); n == 0 || len(r.Files) < n+2 || len(r.Files) > n+3 {
		return fmt.Errorf("%d listeners among %d files", n, len(r.Files))
	}
	return nil
}

// Close closes the files.
func (r *Redirect) Close() error {
	var errs []error
	for _, f := range r.Files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// PrepareKernel sets up the container's network namespace, which it finds by its TUN, for the driver "kernel": addresses and nftables
// rules that lead TCP connections to listeners (see kernelTCP). The caller needs CAP_NET_ADMIN and CAP_SYS_ADMIN in the
// user namespace that owns the network namespace. It works on a thread of its own, which ends; an error means that nothing is
// left but the rung below, the driver "netstack".
func PrepareKernel(cfg Config, tun *os.File) (*Redirect, error) {
	return prepareOnThread(cfg, tun, true)
}

func prepareOnThread(cfg Config, tun *os.File, owned bool) (*Redirect, error) {
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return nil, err
	}
	type result struct {
		r   *Redirect
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread, in another network namespace now, ends with the goroutine.
		runtime.LockOSThread()
		r, maker, err := prepareKernel(cfg, tun, owned)
		done <- result{r, err}
		if maker >= 0 {
			// Whatever ends it ends the conversation: published ports are the stack's from then on.
			_ = socketMaker(maker)
			_ = unix.Close(maker)
		}
	}()
	res := <-done
	return res.r, res.err
}

func prepareKernel(cfg Config, tun *os.File, owned bool) (_ *Redirect, maker int, err error) {
	maker = -1
	ns, err := linkNamespace(int(tun.Fd()))
	if err != nil {
		return nil, -1, err
	}
	err = unix.Setns(ns, unix.CLONE_NEWNET)
	if err := errors.Join(err, unix.Close(ns)); err != nil {
		return nil, -1, fmt.Errorf("join network namespace: %w", err)
	}
	index, err := linkIndex(tunName)
	if err != nil {
		return nil, -1, err
	}
	relays, err := relayAddrs(cfg)
	if err != nil {
		return nil, -1, err
	}
	var b batch
	b.acceptLocal(tunName, index)
	// By the TUN, as the container's own address: a socket that is bound to it (SO_BINDTODEVICE) finds no other route. Packets take loopback all the same.
	for _, a := range relays {
		b.localRoute(tunName, index, a)
	}
	if err := b.send(); err != nil {
		return nil, -1, err
	}
	r := &Redirect{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for _, a := range relays {
		l, err := relayListener(netip.AddrPortFrom(a, relayPort))
		if err != nil {
			return nil, -1, err
		}
		r.Files = append(r.Files, l)
	}
	owner, err := installRules(cfg, index, relays, owned)
	if err != nil {
		return nil, -1, fmt.Errorf("install nftables rules: %w", err)
	}
	// After the rules, whose making would be the first news.
	events, err := ruleEvents()
	if err != nil {
		return nil, -1, errors.Join(err, owner.Close())
	}
	r.Files = append(r.Files, events, owner)
	trackLess()
	noPacing()
	if !cfg.KeepTimeWait {
		noTimeWait()
	}
	if len(cfg.Ports) == 0 || routeMarked(len(relays) > 1) != nil {
		return r, -1, nil // published ports are the stack's
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("make socket pair: %w", err)
	}
	r.Files = append(r.Files, os.NewFile(uintptr(pair[0]), "sockets"))
	return r, pair[1], nil
}

// relayAddrs are the listeners' addresses: one in each of the TUN's prefixes, which policy denies from outside, that is neither
// the container's nor the stack's.
func relayAddrs(cfg Config) ([]netip.Addr, error) {
	prefixes := []netip.Prefix{cfg.Address4}
	if !cfg.NoIPv6 && HaveIPv6() {
		prefixes = append(prefixes, cfg.Address6)
	}
	var out []netip.Addr
	for _, p := range prefixes {
		a := p.Masked().Addr().Next()
		for a == p.Addr() || a == cfg.Gateway4 || a == cfg.DNS4 || a == cfg.Gateway6 || a == cfg.DNS6 {
			a = a.Next()
		}
		if !p.Contains(a.Next()) { // the last one of an IPv4 prefix is its broadcast address
			return nil, fmt.Errorf("prefix %s: no address is left for the relay", p)
		}
		out = append(out, a)
	}
	return out, nil
}

func relayListener(at netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(addrFamily(at.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("open relay socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "relay:"+at.String())
	// What is accepted inherits the options. The sender inside has done Nagle's work already; and if the helper is killed, it is to
	// learn that something was lost: a reset, no FIN.
	// It blocks, as the TUN does, so that the connections do not wake this process too.
	// The relay's addresses are routes without an interface address, which IPv6 would not let be bound.
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
	)
	if err == nil {
		err = unix.Bind(fd, sockaddrOf(at))
	}
	if err == nil {
		err = unix.Listen(fd, relayBacklog)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s in the container: %w", at, err), f.Close())
	}
	loopbackCongestion(fd)
	return f, nil
}

// trackLess keeps the kernel from tracking connections that it sees in their middle: those of published ports, which are
// the stack's. They would only fill the table, and so would those that have ended: two minutes are for networks that delay packets, which
// loopback does not. One that was reset is forgotten before the stack makes a connection from the same port, where the driver's
// could not be made (kernelTCP.untaken): the last offer is two seconds earlier. Not at once, since a late reset of an earlier connection from the port, in
// whose window the sequence numbers of the next often are, gives that time to the connection that is there (nf_conntrack_tcp_packet), which its
// next packet makes long again. Where /proc/sys cannot be written it does no other harm.
func trackLess() {
	for name, seconds := range map[string]string{"loose": "0", "timeout_close": "1", "timeout_time_wait": "1"} {
		_ = os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_"+name, []byte(seconds), 0o644)
	}
}

// noTimeWait has connections leave nothing behind. They all end at the relay's one address: a connection to one server, from a port that one to another server
// has used within the last minute, finds that one's TIME_WAIT there, which knows other timestamps and sequence numbers, and has to repeat its SYN, some milliseconds
// later or a second. TIME_WAIT is for packets that networks deliver late, which loopback does not.
func noTimeWait() {
	_ = os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("0"), 0o644) // where it cannot be written, they do
}

// noPacing chooses another congestion control for the container where it would have bbr from the host. All its connections end at the
// relay, on loopback, where pacing finds nothing to spare and makes many small segments of few large ones: twice the work
// for each byte. Towards the network it is the helper's sockets that count, and those have what the host has.
func noPacing() {
	const name = "/proc/sys/net/ipv4/tcp_congestion_control"
	if now, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(now)) != "bbr" {
		return
	}
	if os.WriteFile(name, []byte("cubic"), 0o644) != nil {
		_ = os.WriteFile(name, []byte("reno"), 0o644) // slower without it, and no worse
	}
}

func addrFamily(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
