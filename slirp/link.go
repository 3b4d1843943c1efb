package slirp

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// headSize holds the headers of any packet and all of one that is not a segment train at the default MTU.
	headSize = 2048
	// tailSize: with headSize more than the largest IP packet.
	tailSize = 64 << 10
	// copyTail: a shorter tail is copied out, so that a receive queue never holds a 64 KiB buffer for a few bytes.
	copyTail = 16 << 10
	gsoMax   = 65535
)

// link is the stack's end of the TUN. gVisor's fdbased endpoint does segmentation offload on sockets only.
type link struct {
	file *os.File
	raw  syscall.RawConn
	mtu  uint32
	// ether: it is a packet socket, whose frames have an Ethernet header after the vnet header.
	ether      bool
	fragmentID atomic.Uint32
	// inspect sees each packet from the container first, with its vnet header and first bytes; true means that it is done with.
	inspect func(vnet, head []byte, total int) bool

	replayed [][]byte // frames to be taken before those of the device

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
	syns       chan *stack.PacketBuffer
	dropped    atomic.Uint64 // packets that the TUN would not take
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// newLink takes over tun. What it makes of it does not block, and the runtime does not poll it, since os.NewFile sees that it blocks: where a worker
// waits for packets, the runtime's poller would wake another thread for each of them.
func newLink(tun *os.File, mtu int) (*link, error) {
	fd, err := unix.FcntlInt(tun.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate tun descriptor: %w", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil { // a helper before this one has made it so
		return nil, errors.Join(fmt.Errorf("make tun blocking: %w", err), unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), "tun")
	raw, err := file.SyscallConn()
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make tun non-blocking: %w", err), file.Close())
	}
	if err := tun.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("close tun: %w", err), file.Close())
	}
	return &link{file: file, raw: raw, mtu: uint32(mtu), ether: isPacketSocket(fd), syns: make(chan *stack.PacketBuffer, 256)}, nil
}

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
func (l *link) GSOMaxSize() uint32                      { return gsoMax }
func (l *link) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	// Not CapabilityTXChecksumOffload: the stack would leave packets without segmentation options (SYN, RST)
	// with no checksum and no word of it. Data packets get theirs from the kernel all the same.
	return stack.CapabilityRXChecksumOffload
}

func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	l.dispatcher = d
	l.mu.Unlock()
}

func (l *link) IsAttached() bool { return l.dispatch() != nil }

func (l *link) dispatch() stack.NetworkDispatcher {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher
}

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if err := l.writePacket(pkt); err != nil {
			if n == 0 {
				return 0, err
			}
			break
		}
		n++
	}
	return n, nil
}

// writePacket sends one packet. One with SYN is left to another goroutine: the stack sends it under a lock for which
// its processor goroutine spins as soon as the answer is there, and that is while this write still runs, since the
// container's kernel handles the packet within it. On a busy machine the writer may lose its CPU to the spinner.
func (l *link) writePacket(pkt *stack.PacketBuffer) tcpip.Error {
	if h := pkt.TransportHeader().Slice(); pkt.TransportProtocolNumber == header.TCPProtocolNumber && len(h) >= header.TCPMinimumSize &&
		header.TCP(h).Flags()&header.TCPFlagSyn != 0 {
		select {
		case l.syns <- pkt.IncRef():
			return nil
		default:
		}
	}
	return l.write(pkt)
}

// synLoop writes packets with SYN until the channel is closed.
func (l *link) synLoop(done <-chan struct{}) {
	for {
		select {
		case pkt := <-l.syns:
			l.write(pkt)
			pkt.DecRef()
		case <-done:
			return
		}
	}
}

func (l *link) write(pkt *stack.PacketBuffer) tcpip.Error {
	var hdrBuf [vnetHdrLen]byte
	l.txHeader(pkt).put(hdrBuf[:])
	var iovArr [8]unix.Iovec
	iov := append(iovArr[:0], iovec(hdrBuf[:]))
	views, off := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if off >= len(b) {
			off -= len(b)
			continue
		}
		iov = append(iov, iovec(b[off:]))
		off = 0
	}
	if _, err := l.writev(iov); err != nil {
		return &tcpip.ErrAborted{}
	}
	return nil
}

// txHeader says what is left to the kernel: the checksum of TCP data, and cutting it into segments.
func (l *link) txHeader(pkt *stack.PacketBuffer) vnetHdr {
	var h vnetHdr
	if pkt.GSOOptions.Type == stack.GSONone || !pkt.GSOOptions.NeedsCsum {
		return h
	}
	h.hdrLen = uint16(pkt.HeaderSize())
	h.flags = vnetNeedsCsum
	h.csumStart = pkt.GSOOptions.L3HdrLen
	h.csumOffset = pkt.GSOOptions.CsumOffset
	mss := pkt.GSOOptions.MSS
	if l.ether {
		mss = min(mss, vethMSS)
	}
	if pkt.Data().Size() > int(mss) {
		h.gsoSize = mss
		h.gsoType = gsoTCPv4
		if pkt.GSOOptions.Type == stack.GSOTCPv6 {
			h.gsoType = gsoTCPv6
		}
	}
	return h
}

// writeFrame sends one whole frame, vnet header included.
func (l *link) writeFrame(frame []byte) error {
	if l.ether && len(frame)-vnetHdrLen > int(l.mtu) && frame[vnetGSOType] == gsoNone {
		// A TUN takes packets of any size.
		var errs []error
		for _, f := range inFragments(frame, int(l.mtu), l.fragmentID.Add(1)) {
			_, err := l.writev([]unix.Iovec{iovec(f)})
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	_, err := l.writev([]unix.Iovec{iovec(frame)})
	return err
}

// writev writes to the TUN, which takes a packet at once or drops it: it never makes a writer wait. The
// system call is raw, because it is short and the scheduler need not know.
func (l *link) writev(iov []unix.Iovec) (int, error) {
	var n int
	var errno syscall.Errno
	if l.ether {
		var head [vnetHdrLen + etherHdrLen]byte
		iov = etherFrame(iov, &head)
	}
	err := l.raw.Control(func(fd uintptr) {
		r, _, e := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
		n, errno = int(r), e
	})
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		l.dropped.Add(1)
		return 0, errno
	}
	return n, nil
}

func iovec(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// polled gives the TUN as a file that the runtime polls.
func (l *link) polled() (*os.File, error) {
	fd, err := unix.FcntlInt(l.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate tun descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), "tun"), nil
}

// readLoop reads packets, by what polled gave, until the device is gone (EBADFD) or the file is closed; then it returns nil.
func (l *link) readLoop(polled *os.File) error {
	raw, err := polled.SyscallConn()
	if err != nil {
		return fmt.Errorf("poll tun: %w", err)
	}
	var r packetReader
	defer r.release()
	l.replayAll(&r)
	for {
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			readErr = l.readPacket(&r, fd)
			return readErr != unix.EAGAIN
		})
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("wait for tun: %w", err)
		case readErr != nil:
			return readErr
		}
	}
}

// readPacket reads and handles one packet. The error is EAGAIN if there is none, io.EOF if the device is gone.
func (l *link) readPacket(r *packetReader, fd uintptr) error {
	prefix := vnetHdrLen
	if l.ether {
		prefix += etherHdrLen
	}
	iov := r.iovecs(prefix)
	n, _, errno := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	switch {
	case errno == unix.EINTR:
		return nil
	case errno == unix.EAGAIN:
		return errno
	case errno == unix.EBADFD || errno == 0 && n == 0 || errno == unix.ENETDOWN && packetDeviceGone(int(fd)):
		return io.EOF
	case errno == unix.ENETDOWN: // said once
		return nil
	case errno != 0:
		return fmt.Errorf("read tun: %w", errno)
	case int(n) > prefix && (!l.ether || stripEther(r.vnet[:])):
		l.receive(r, int(n)-prefix)
	}
	return nil
}

func (l *link) receive(r *packetReader, n int) {
	head := r.head.AsSlice()[:min(n, headSize)]
	whole := head
	if n > headSize && needsWhole(head) {
		whole = append(append(make([]byte, 0, n), head...), r.tail.AsSlice()[:n-headSize]...)
	}
	if l.inspect(r.vnet[:vnetHdrLen], whole, n) {
		return
	}
	d := l.dispatch()
	if d == nil {
		return
	}
	proto := header.IPv4ProtocolNumber
	if head[0]>>4 == 6 {
		proto = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: r.take(n)})
	// The kernel has checked the sum or left it to us to compute; either way there is nothing to check.
	pkt.RXChecksumValidated = true
	d.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// needsWhole tells whether inspect itself uses the payload of the packet: those of UDP and ICMP, never TCP.
func needsWhole(head []byte) bool {
	if head[0]>>4 == 4 {
		return head[9] != protoTCP
	}
	return len(head) > 6 && head[6] != protoTCP
}

// packetReader holds the buffers of the next packet: head, which the packet takes with it, and tail.
type packetReader struct {
	vnet [vnetHdrLen + etherHdrLen]byte // what comes before the packet
	head *buffer.View
	tail *buffer.View
	iov  [3]unix.Iovec
}

func (r *packetReader) iovecs(prefix int) *[3]unix.Iovec {
	if r.head == nil {
		r.head = buffer.NewViewSize(headSize)
	}
	if r.tail == nil {
		r.tail = buffer.NewViewSize(tailSize)
	}
	r.iov = [3]unix.Iovec{iovec(r.vnet[:prefix]), iovec(r.head.AsSlice()), iovec(r.tail.AsSlice())}
	return &r.iov
}

// take makes the packet of n bytes that was read last into a buffer.
func (r *packetReader) take(n int) buffer.Buffer {
	head := r.head
	r.head = nil
	if n <= headSize {
		head.CapLength(n)
		return buffer.MakeWithView(head)
	}
	buf := buffer.MakeWithView(head)
	n -= headSize
	if n <= copyTail {
		buf.Append(buffer.NewViewWithData(r.tail.AsSlice()[:n]))
		return buf
	}
	r.tail.CapLength(n)
	buf.Append(r.tail)
	r.tail = nil
	return buf
}

func (r *packetReader) release() {
	if r.head != nil {
		r.head.Release()
	}
	if r.tail != nil {
		r.tail.Release()
	}
	r.head, r.tail = nil, nil
}
