package slirp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The driver "kernel" connects to published ports from sockets in the container's network namespace that may bind the client's
// own address (IP_TRANSPARENT). Only whoever has CAP_NET_ADMIN there can make them: the helper asks for them on a SOCK_SEQPACKET
// pair, some at a time. A request is the family ('4' or '6') and a number; the answer begins with the same two bytes, the number
// being that of the files that come with it.

const (
	// relayMark is that of the packets of such sockets, by which they and what answers them stay on loopback.
	relayMark  = 0x7572
	relayTable = 0x7572
	// socketBatch is how many are asked for at once; poolLow is when.
	socketBatch = 32
	poolLow     = 32
)

// socketMaker answers requests until the other end is closed, on a thread in the container's network namespace.
func socketMaker(conn int) error {
	var req [2]byte
	for {
		n, _, err := unix.Recvfrom(conn, req[:], 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("receive request for sockets: %w", err)
		case n == 0:
			return nil
		}
		if err := answerRequest(conn, req[:n]); err != nil {
			return err
		}
	}
}

func answerRequest(conn int, req []byte) error {
	family, count, ok := parseSocketRequest(req)
	var fds []int
	for range count {
		fd, err := transparentSocket(family)
		if err != nil {
			break // what there is; none tells that there are none to be had
		}
		fds = append(fds, fd)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	answer := []byte{0, byte(len(fds))}
	if ok {
		answer[0] = req[0]
	}
	err := unix.Sendmsg(conn, answer, rights, nil, unix.MSG_NOSIGNAL)
	for _, fd := range fds {
		err = errors.Join(err, unix.Close(fd))
	}
	if errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}

// parseSocketRequest reads a request of the helper, which the maker does not trust.
func parseSocketRequest(req []byte) (family, count int, ok bool) {
	if len(req) != 2 || req[1] > socketBatch {
		return 0, 0, false
	}
	switch req[0] {
	case '4':
		return unix.AF_INET, int(req[1]), true
	case '6':
		return unix.AF_INET6, int(req[1]), true
	}
	return 0, 0, false
}

func transparentSocket(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if family == unix.AF_INET {
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	} else {
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	err = errors.Join(
		err,
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, relayMark),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), // as in addFlow
	)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("make transparent socket: %w", err), unix.Close(fd))
	}
	loopbackCongestion(fd)
	return fd, nil
}

// loopbackCongestion chooses a congestion control for loopback, where nothing is lost and nothing needs to be paced (the host's
// default may be bbr). Where neither can be had the default does it too.
func loopbackCongestion(fd int) {
	if unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic") != nil {
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
	}
}

// routeMarked keeps packets with the mark on loopback, those that answer them too: what accepts a connection takes over its
// mark.
func routeMarked(ipv6 bool) error {
	settings := []string{"ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect"}
	families := []byte{unix.AF_INET}
	if ipv6 {
		settings, families = append(settings, "ipv6/fwmark_reflect"), append(families, unix.AF_INET6)
	}
	for _, name := range settings {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0o644); err != nil {
			return err
		}
	}
	var b batch
	for _, family := range families {
		b.markRule(family, relayMark, relayTable)
		b.localDefault(family, loIndex, relayTable)
	}
	return b.send()
}

// socketPool is the helper's store of such sockets.
type socketPool struct {
	conn *net.UnixConn

	mu     sync.Mutex
	free   map[byte][]int
	asked  bool
	closed bool
}

func newSocketPool(f *os.File) (*socketPool, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket pool: %s is not a unix socket", f.Name()), c.Close())
	}
	// asked: until fill has been there.
	return &socketPool{conn: conn, free: map[byte][]int{}, asked: true}, nil
}

func familyByte(a netip.Addr) byte {
	if a.Is4() {
		return '4'
	}
	return '6'
}

// take gives a socket for connections to an address of a's family, or -1.
func (p *socketPool) take(a netip.Addr) int {
	family := familyByte(a)
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.free[family]
	fd := -1
	if n := len(list); n > 0 {
		fd = list[n-1]
		p.free[family] = list[:n-1]
	}
	if len(p.free[family]) < poolLow && !p.asked && !p.closed {
		p.asked = true
		go p.refill(family)
	}
	return fd
}

// fill fetches the first sockets of both families, so that the first client need not wait.
func (p *socketPool) fill(families ...byte) {
	var err error
	for _, family := range families {
		err = errors.Join(err, p.request(family))
	}
	p.answered(err)
}

func (p *socketPool) refill(family byte) { p.answered(p.request(family)) }

func (p *socketPool) answered(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = false
	if err != nil {
		p.closed = true // what is left is used up; then published ports are the stack's
	}
}

var errNoSockets = errors.New("no sockets are made")

func (p *socketPool) request(family byte) error {
	if _, err := p.conn.Write([]byte{family, socketBatch}); err != nil {
		return err
	}
	answer, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(4*socketBatch))
	n, oobn, flags, _, err := p.conn.ReadMsgUnix(answer, oob)
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	fds, err := receivedFDs(oob[:oobn], flags)
	if err != nil {
		return err
	}
	if n != 2 || answer[0] != family || int(answer[1]) != len(fds) || len(fds) == 0 {
		closeAll(fds)
		return errNoSockets
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		closeAll(fds)
		return errNoSockets
	}
	p.free[family] = append(p.free[family], fds...)
	return nil
}

// receivedFDs are the descriptors that came with a message.
func receivedFDs(oob []byte, flags int) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, got...)
	}
	if flags&unix.MSG_CTRUNC != 0 { // no descriptors left (EMFILE)
		closeAll(fds)
		return nil, errNoSockets
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // ours alone
	}
}

func (p *socketPool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, fds := range p.free {
		closeAll(fds)
	}
	p.free = map[byte][]int{}
	return p.conn.Close()
}
