package slirp

import (
	"encoding/binary"
	"fmt"
)

// vnetHdr is struct virtio_net_hdr (linux/virtio_net.h), which goes before each packet on a TUN with
// IFF_VNET_HDR. The kernel uses the byte order of the machine unless TUNSETVNETLE or BE was called.
type vnetHdr struct {
	flags      uint8
	gsoType    uint8
	hdrLen     uint16 // of all headers, a hint
	gsoSize    uint16 // payload bytes of each segment
	csumStart  uint16 // the checksum covers from here to the end
	csumOffset uint16 // and is stored here, after csumStart
}

const (
	vnetHdrLen  = 10
	vnetGSOType = 1 // where gsoType is

	vnetNeedsCsum = 1
	gsoNone       = 0
	gsoTCPv4      = 1
	gsoTCPv6      = 4
)

func (h vnetHdr) put(p []byte) {
	_ = p[vnetHdrLen-1]
	p[0], p[1] = h.flags, h.gsoType
	binary.NativeEndian.PutUint16(p[2:], h.hdrLen)
	binary.NativeEndian.PutUint16(p[4:], h.gsoSize)
	binary.NativeEndian.PutUint16(p[6:], h.csumStart)
	binary.NativeEndian.PutUint16(p[8:], h.csumOffset)
}

func parseVnetHdr(p []byte) (vnetHdr, error) {
	if len(p) < vnetHdrLen {
		return vnetHdr{}, fmt.Errorf("vnet header of %d bytes", len(p))
	}
	return vnetHdr{
		flags:      p[0],
		gsoType:    p[1],
		hdrLen:     binary.NativeEndian.Uint16(p[2:]),
		gsoSize:    binary.NativeEndian.Uint16(p[4:]),
		csumStart:  binary.NativeEndian.Uint16(p[6:]),
		csumOffset: binary.NativeEndian.Uint16(p[8:]),
	}, nil
}
