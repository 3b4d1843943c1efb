package slirp

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// AwaitTraffic reads from the TUN until a packet comes that wants an answer, and returns it, as it was read, for Replay.
// Many containers never use their network: until then none of the stack needs to be there. What the kernel says of its
// own accord when the device comes up (router solicitations, multicast listener reports) has no answer here and is dropped.
// It returns io.EOF when the device is gone. The TUN stays open and is the caller's.
func AwaitTraffic(tun *os.File) ([]byte, error) {
	// A duplicate, since waiting by the runtime's poller needs a descriptor that is non-blocking when it is made a file.
	fd, err := unix.FcntlInt(tun.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate tun descriptor: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("make tun non-blocking: %w", err), unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), "tun")
	defer file.Close()
	frame := make([]byte, vnetHdrLen+etherHdrLen+headSize+tailSize)
	ether := isPacketSocket(fd)
	for {
		n, err := file.Read(frame)
		switch {
		case errors.Is(err, unix.EBADFD), errors.Is(err, unix.ENETDOWN) && packetDeviceGone(fd):
			return nil, io.EOF
		case errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return nil, fmt.Errorf("read tun: %w", err)
		}
		if ether {
			if n <= vnetHdrLen+etherHdrLen || !stripEther(frame) {
				continue
			}
			n = vnetHdrLen + copy(frame[vnetHdrLen:], frame[vnetHdrLen+etherHdrLen:n])
		}
		if n > vnetHdrLen && !chatter(frame[vnetHdrLen:n]) {
			return frame[:n], nil
		}
	}
}

// chatter tells whether a packet is multicast of IPv6's own: to a group, and ICMPv6, perhaps behind a hop-by-hop option.
func chatter(packet []byte) bool {
	if len(packet) < header.IPv6MinimumSize || packet[0]>>4 != 6 {
		return false
	}
	const hopByHop = 0
	next, dst0 := packet[6], packet[24]
	return dst0 == 0xff && (next == protoICMPv6 || next == hopByHop)
}

// Replay hands the network frames that AwaitTraffic returned: they come before what Serve reads. It must be called before Serve.
func (n *Network) Replay(frames ...[]byte) { n.link.replayed = append(n.link.replayed, frames...) }

func (l *link) replayAll(r *packetReader) {
	for _, frame := range l.replayed {
		l.replay(r, frame)
	}
	l.replayed = nil
}

// replay delivers a frame as if it had just been read.
func (l *link) replay(r *packetReader, frame []byte) {
	if len(frame) <= vnetHdrLen || len(frame) > vnetHdrLen+headSize+tailSize {
		return
	}
	r.iovecs(vnetHdrLen) // makes the buffers
	rest := frame[copy(r.vnet[:vnetHdrLen], frame):]
	copy(r.tail.AsSlice(), rest[copy(r.head.AsSlice(), rest):])
	l.receive(r, len(rest))
}
