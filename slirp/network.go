package slirp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	glog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID tcpip.NICID = 1

// Network is the host's half of one container's network.
type Network struct {
	cfg    Config
	policy policy
	log    *slog.Logger
	ports  *Listeners
	link   *link
	stack  *stack.Stack

	tcp  *tcpOut
	udp  *udpFlows
	echo *echoFlows
	dns  *forwarder

	kernel     *kernelTCP // nil: all TCP is the stack's
	onFallback func(driver, reason string)
	published  published

	gathers *bytePool // for flows to the host

	// ctx ends when Serve does; everything that was started waits for it, and Serve waits for flows.
	ctx    context.Context
	cancel context.CancelFunc
	flows  sync.WaitGroup
	// drained: it was not ctx's end that ended it, but there is nothing more to do (Drain).
	drained atomic.Bool
}

// New binds the published ports and builds the stack on the TUN; it takes over tun. It runs in the helper,
// in the host's network namespace, and needs no capability.
func New(cfg Config, tun *os.File, log *slog.Logger) (*Network, error) {
	ports, err := Listen(cfg)
	if err != nil {
		return nil, err
	}
	n, err := ports.Attach(tun, log)
	if err != nil {
		return nil, errors.Join(err, ports.Close())
	}
	return n, nil
}

// Attach builds the stack on the TUN that Configure made with the same configuration. It takes over tun and,
// if it succeeds, the listeners.
func (l *Listeners) Attach(tun *os.File, log *slog.Logger) (*Network, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	lk, err := newLink(tun, l.cfg.MTU)
	if err != nil {
		return nil, err
	}
	n := &Network{cfg: l.cfg, policy: newPolicy(l.cfg), log: log, ports: l, link: lk, gathers: newBytePool(gather)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	lk.inspect = n.inspect
	// gVisor's own log has one target for the process, which is its standard error unless set.
	glog.SetTarget(stackLog{log})
	if n.stack, err = newStack(l.cfg, lk); err != nil {
		n.cancel()
		return nil, errors.Join(err, lk.file.Close())
	}
	n.dns = newForwarder(n)
	n.udp = newUDPFlows(n)
	n.echo = newEchoFlows(n)
	n.tcp = newTCPOut(n)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, n.tcp.handlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, n.reassembled)
	n.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, n.reassembled)
	n.stack.SetTransportProtocolHandler(icmp.ProtocolNumber6, n.reassembled)
	return n, nil
}

// Ports gives the published ports, random ones resolved, in the order of the configuration.
func (n *Network) Ports() []PortMapping { return n.ports.Ports() }

// Serve carries packets until ctx ends or the TUN is gone, then ends every flow and closes everything. It
// can be called once. The error is nil if ctx or Drain ended it, io.EOF if the TUN is gone.
func (n *Network) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, n.cancel)
	defer stop()
	n.ports.serve(n)
	n.flows.Go(func() { n.udp.sweep(n.ctx) })
	n.flows.Go(func() { n.link.synLoop(n.ctx.Done()) })
	err := n.readTUN()
	n.cancel()
	err = errors.Join(err, n.ports.Close(), n.published.close())
	n.stack.Close()
	n.udp.close()
	n.echo.close()
	n.dns.close()
	n.flows.Wait()
	if n.kernel != nil {
		err = errors.Join(err, n.kernel.close())
	}
	n.stack.Wait()
	if ctx.Err() != nil || n.drained.Load() {
		return nil
	}
	return err
}

// readTUN reads packets until ctx ends or the TUN is gone, and closes it.
func (n *Network) readTUN() error {
	if n.kernel != nil {
		return errors.Join(n.kernel.serve(), n.link.file.Close())
	}
	polled, err := n.link.polled()
	if err != nil {
		return errors.Join(err, n.link.file.Close())
	}
	closed := context.AfterFunc(n.ctx, func() {
		if err := errors.Join(polled.Close(), n.link.file.Close()); err != nil {
			n.log.Debug("close tun", "err", err)
		}
	})
	defer closed()
	return n.link.readLoop(polled)
}

func newStack(cfg Config, lk *link) (*stack.Stack, error) {
	netProtos := []stack.NetworkProtocolFactory{ipv4.NewProtocol}
	transProtos := []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4}
	if !cfg.NoIPv6 {
		netProtos = append(netProtos, ipv6.NewProtocol)
		transProtos = append(transProtos, icmp.NewProtocol6)
	}
	s := stack.New(stack.Options{NetworkProtocols: netProtos, TransportProtocols: transProtos})
	fail := func(what string, err tcpip.Error) (*stack.Stack, error) {
		s.Destroy()
		return nil, fmt.Errorf("%s: %s", what, err)
	}
	for _, opt := range tcpOptions() {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fail(fmt.Sprintf("set tcp option %T", opt), err)
		}
	}
	if err := s.CreateNIC(nicID, lk); err != nil {
		return fail("create stack interface", err)
	}
	// Promiscuous: the stack accepts packets to any address. Spoofing: it sends from any.
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return fail("set promiscuous mode", err)
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return fail("set spoofing", err)
	}
	routes := []tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}}
	own := []netip.Prefix{netip.PrefixFrom(cfg.Gateway4, 32), netip.PrefixFrom(cfg.DNS4, 32)}
	if !cfg.NoIPv6 {
		routes = append(routes, tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nicID})
		own = append(own, netip.PrefixFrom(cfg.Gateway6, 128), netip.PrefixFrom(cfg.DNS6, 128))
	}
	for _, p := range own {
		addr := tcpip.ProtocolAddress{Protocol: netProto(p.Addr()), AddressWithPrefix: tcpip.AddressWithPrefix{Address: toStack(p.Addr()), PrefixLen: p.Bits()}}
		if err := s.AddProtocolAddress(nicID, addr, stack.AddressProperties{}); err != nil {
			return fail("add stack address "+p.String(), err)
		}
	}
	s.SetRouteTable(routes)
	return s, nil
}

// tcpOptions bounds what a flow may hold: at most maxBuffer each way. The link neither loses nor reorders
// packets, so that TIME_WAIT guards against nothing: a retransmitted FIN gets a RST, which ends the
// container's LAST_ACK all the same. It would only keep the container from using the port again.
func tcpOptions() []tcpip.SettableTransportProtocolOption {
	const defBuffer, maxBuffer = 512 << 10, 4 << 20
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	timeWait, linger := tcpip.TCPTimeWaitTimeoutOption(20*time.Millisecond), tcpip.TCPLingerTimeoutOption(60*time.Second)
	return []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &timeWait, &linger,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: defBuffer, Max: maxBuffer},
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: defBuffer, Max: maxBuffer},
	}
}

// inspect is the first to see a packet from the container: it enforces the policy, and takes out datagrams
// and echo requests that need nothing of the stack.
func (n *Network) inspect(vnet, head []byte, total int) bool {
	pkt, err := parseIP(head, total)
	if err != nil {
		return true
	}
	v := n.policy.check(pkt.src, pkt.dst)
	switch v {
	case drop:
		return true
	case deny:
		n.unreachable(pkt.dst, pkt.src, prohibited, head)
		return true
	}
	if pkt.fragment {
		return false
	}
	switch pkt.proto {
	case protoUDP:
		n.datagram(pkt, head)
		return true
	case protoICMP, protoICMPv6:
		return v == forward && n.echo.request(pkt)
	case protoTCP:
		return n.kernel != nil && total == len(head) && n.kernel.syn(pkt, vnet, head)
	}
	return false
}

// reassembled takes datagrams and echo requests that came in fragments or behind extension headers.
func (n *Network) reassembled(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	whole := pkt.ToView()
	defer whole.Release()
	hdr := len(pkt.NetworkHeader().Slice())
	p := ipPacket{
		src: fromStack(id.RemoteAddress), dst: fromStack(id.LocalAddress), proto: uint8(pkt.TransportProtocolNumber),
		hdr: hdr, payload: whole.AsSlice()[hdr:],
	}
	if p.proto == protoUDP {
		n.datagram(p, whole.AsSlice())
		return true
	}
	return n.policy.check(p.src, p.dst) == forward && n.echo.request(p)
}

// unreachable tells the container that the packet which starts with orig found no way to src.
func (n *Network) unreachable(src, dst netip.Addr, why reason, orig []byte) {
	if err := n.link.writeFrame(putUnreachable(src, dst, why, orig)); err != nil {
		n.log.Debug("send unreachable", "err", err)
	}
}

// Gone tells whether an error of Serve means that the TUN is gone with the container.
func Gone(err error) bool { return errors.Is(err, io.EOF) }

// stackLog hands gVisor's messages, which are for its developers, to ours.
type stackLog struct{ log *slog.Logger }

// Emit implements log.Emitter of gVisor.
func (s stackLog) Emit(_ int, level glog.Level, _ time.Time, format string, v ...any) {
	l := slog.LevelDebug
	if level == glog.Warning {
		l = slog.LevelWarn
	}
	s.log.Log(context.Background(), l, "netstack", "msg", fmt.Sprintf(format, v...))
}

func netProto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

func toStack(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func fromStack(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}
