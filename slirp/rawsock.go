package slirp

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the relay, on descriptors that never block: raw, since the scheduler need not know of them.

func recvFD(fd int, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

func sendFD(fd int, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

func spliceFD(from, to, n int) (int, error) {
	for {
		m, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if errno == 0 {
			return int(m), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// rawSockaddr is a struct sockaddr_in or sockaddr_in6 as the kernel reads and writes it.
type rawSockaddr [unix.SizeofSockaddrInet6]byte

func (sa *rawSockaddr) put(a netip.AddrPort) (size uintptr) {
	binary.NativeEndian.PutUint16(sa[:], uint16(addrFamily(a.Addr())))
	binary.BigEndian.PutUint16(sa[2:], a.Port())
	if a.Addr().Is4() {
		b := a.Addr().As4()
		copy(sa[4:], b[:])
		return unix.SizeofSockaddrInet4
	}
	b := a.Addr().As16()
	copy(sa[8:], b[:])
	return unix.SizeofSockaddrInet6
}

func (sa *rawSockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(sa[2:])
	switch binary.NativeEndian.Uint16(sa[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(sa[8:24])), port)
	}
	return netip.AddrPort{}
}

func socketFD(family int) (int, error) {
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func connectFD(fd int, to netip.AddrPort) error {
	var sa rawSockaddr
	size := sa.put(to)
	if _, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), size); errno != 0 {
		return errno
	}
	return nil
}

// acceptFD is accept4(2). That of x/sys asks for the socket's protocol each time, to learn what kind of address it has.
func acceptFD(listener int) (fd int, peer netip.AddrPort, err error) {
	var sa rawSockaddr
	size := uint32(len(sa))
	r, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, peer, errno
	}
	return int(r), sa.addrPort(), nil
}

// closeFD does not wait: no socket of ours lingers.
func closeFD(fd int) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func epollWait(epoll int, events []unix.EpollEvent, milliseconds int) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(milliseconds), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func epollCtl(epoll, op, fd int, ev unix.EpollEvent) error {
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// closeSocket closes a socket, with a reset instead of a FIN if asked. That it fails means that it was closed, which is
// what is wanted.
func closeSocket(fd int, reset bool) {
	if reset {
		linger(fd, true)
	}
	closeFD(fd)
}

// linger makes the closing of a socket, by whomever, a reset. It cannot fail on a socket.
func linger(fd int, reset bool) {
	l := unix.Linger{}
	if reset {
		l.Onoff = 1
	}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l)
}

// noDelay turns Nagle's algorithm off. On a socket where it fails the next write says why.
func noDelay(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

const (
	pipeSize = 1 << 20
	// maxPipes bounds the pages in flight to 16 MB a worker, not above what the kernel lets a user's pipes hold by default
	// (/proc/sys/fs/pipe-user-pages-soft, 64 MB). Flows that get none copy.
	maxPipes = 16
	// keptPipes are kept open for the next use.
	keptPipes = 8
)

// pipe has n bytes in it.
type pipe struct{ r, w, n int }

// pipePool is a worker's own.
type pipePool struct {
	free []*pipe
	used atomic.Int32 // read by others
}

// get gives an empty pipe, or nil if there are too many.
func (p *pipePool) get() *pipe {
	if p.used.Load() >= maxPipes {
		return nil
	}
	if n := len(p.free); n > 0 {
		got := p.free[n-1]
		p.free = p.free[:n-1]
		p.used.Add(1)
		return got
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil
	}
	// Over the user's limit a pipe stays as it is, 64 KiB or less, and serves all the same.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	p.used.Add(1)
	return &pipe{r: fds[0], w: fds[1]}
}

// put takes an empty pipe back.
func (p *pipePool) put(x *pipe) {
	if x.n > 0 || len(p.free) >= keptPipes {
		p.discard(x)
		return
	}
	p.used.Add(-1)
	p.free = append(p.free, x)
}

// discard closes a pipe with what is in it.
func (p *pipePool) discard(x *pipe) {
	p.used.Add(-1)
	_, _ = unix.Close(x.r), unix.Close(x.w) // nothing else holds them
}

func (p *pipePool) close() {
	for _, x := range p.free {
		_, _ = unix.Close(x.r), unix.Close(x.w) // nothing else holds them
	}
	p.free = nil
}
