package slirp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableName is that of the rules' table, of the family inet.
const tableName = "urun"

// installRules makes the rules by which the container's TCP connections become connections to the relay. In the words of nft(8), for
// IPv4, with the container's address C and the relay's R:
//
//	table inet urun {
//	  chain leaving {   # before connection tracking
//	    type filter hook output priority raw
//	    oif "tun0" tcp flags & (fin|syn|rst|ack) != syn accept
//	    oif "tun0" notrack                                                    # the helper keeps those flows, and a SYN is tracked when it comes back
//	    ip saddr R accept
//	    oif "lo" notrack                                                      # the container talking to itself
//	  }
//	  chain arriving {
//	    type filter hook prerouting priority raw
//	    iif != "tun0" accept
//	    ip saddr != C notrack
//	  }
//	  chain redirect {
//	    type nat hook prerouting priority dstnat
//	    iif "tun0" ip saddr C tcp flags & (fin|syn|rst|ack) == syn dnat to R:1
//	  }
//	  chain relay {     # nobody else connects to the listener
//	    type filter hook input priority filter
//	    meta l4proto != tcp accept
//	    tcp flags & (syn|rst) == 0 accept
//	    tcp flags & (fin|syn|rst|ack) == rst ct status & dnat != 0 ct direction reply ct packets <= 8 drop    # see earlyPackets
//	    tcp flags & (fin|syn|rst|ack) != syn accept
//	    ip daddr R tcp dport 1 ct status & dnat != 0 accept
//	    ip daddr R tcp dport 1 reject with tcp reset
//	  }
//	}
//
// All but the first packet of a connection take the first rule that can be theirs: what a rule costs, each packet pays. Devices are known by their
// numbers for the same reason.
//
// A packet with the container's own source comes from the TUN only if the helper put it there: it gives back the SYN
// whose connection it has made on the host. All further packets of that connection are rewritten by connection
// tracking, in the output hook and on loopback, and never reach the TUN.
//
// The table is owned by the socket that made it, which is returned: others can neither change nor flush it (NFT_TABLE_F_OWNER,
// Linux 5.12), and it goes with the socket's last descriptor. Older kernels refuse the flag; there, anybody with
// CAP_NET_ADMIN inside can remove it.
func installRules(cfg Config, tun int32, relays []netip.Addr, owned bool) (_ *os.File, err error) {
	var sock *netlink.Conn
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error { sock = c; return nil }))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.CloseLasting()) }()
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	if !owned || makeOwnedTable(sock) != nil {
		conn.AddTable(t)
	}
	chain := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Name: name, Table: t, Type: typ, Hooknum: hook, Priority: prio})
	}
	leaving := chain("leaving", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw)
	arriving := chain("arriving", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	redirect := chain("redirect", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	relay := chain("relay", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	rule := func(c *nftables.Chain, parts ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: flatten(parts)})
	}
	notrack, accept, drop := []expr.Any{&expr.Notrack{}}, []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	rule(leaving, device(expr.MetaKeyOIF, expr.CmpOpEq, tun), l4proto(expr.CmpOpEq, protoTCP), firstSYN(expr.CmpOpNeq), accept)
	rule(leaving, device(expr.MetaKeyOIF, expr.CmpOpEq, tun), notrack)
	rule(arriving, device(expr.MetaKeyIIF, expr.CmpOpNeq, tun), accept)
	rule(relay, l4proto(expr.CmpOpNeq, protoTCP), accept)
	rule(relay, flags(expr.CmpOpEq, tcpSYN|tcpRST, 0), accept)
	rule(relay, flags(expr.CmpOpEq, tcpFIN|tcpSYN|tcpRST|tcpACK, tcpRST), redirected(), replying(), packets(earlyPackets), drop)
	rule(relay, firstSYN(expr.CmpOpNeq), accept)
	for _, r := range relays {
		c := cfg.Address4.Addr()
		if r.Is6() {
			c = cfg.Address6.Addr()
		}
		rule(leaving, source(expr.CmpOpEq, r), accept)
		rule(arriving, source(expr.CmpOpNeq, c), notrack)
		rule(redirect, device(expr.MetaKeyIIF, expr.CmpOpEq, tun), source(expr.CmpOpEq, c), l4proto(expr.CmpOpEq, protoTCP), firstSYN(expr.CmpOpEq), destinationNAT(r, relayPort))
		rule(relay, destination(r), destinationPort(relayPort), redirected(), accept)
		rule(relay, destination(r), destinationPort(relayPort), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	}
	rule(leaving, device(expr.MetaKeyOIF, expr.CmpOpEq, loIndex), notrack)
	if err := conn.Flush(); err != nil {
		return nil, err
	}
	return duplicate(sock, "nftables owner")
}

// makeOwnedTable makes the table as the socket's own; google/nftables knows no flags of tables.
func makeOwnedTable(sock *netlink.Conn) error {
	const ownerFlag = 2 // NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h
	batch := func(typ netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request}, Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(tableName + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, ownerFlag)},
	})
	if err != nil {
		return err
	}
	_, err = sock.SendMessages([]netlink.Message{
		batch(unix.NFNL_MSG_BATCH_BEGIN),
		{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, Flags: netlink.Request | netlink.Acknowledge | netlink.Create},
			Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
		},
		batch(unix.NFNL_MSG_BATCH_END),
	})
	if err == nil {
		_, err = sock.Receive()
	}
	return err
}

// duplicate makes a file of a netlink connection's socket.
func duplicate(sock *netlink.Conn, name string) (*os.File, error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(s uintptr) { fd, dupErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, fmt.Errorf("duplicate netlink socket: %w", dupErr)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func flatten(parts [][]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func equal(op expr.CmpOp, data []byte) *expr.Cmp { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func device(key expr.MetaKey, op expr.CmpOp, index int32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(op, binary.NativeEndian.AppendUint32(nil, uint32(index)))}
}

func l4proto(op expr.CmpOp, proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(op, []byte{proto})}
}

// firstSYN matches the packet that asks for a connection, or all others; the protocol is known to be TCP.
func firstSYN(op expr.CmpOp) []expr.Any { return flags(op, tcpFIN|tcpSYN|tcpRST|tcpACK, tcpSYN) }

// flags compares those of TCP that are in mask.
func flags(op expr.CmpOp, mask, want byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		equal(op, []byte{want}),
	}
}

func source(op expr.CmpOp, a netip.Addr) []expr.Any { return address(op, a, 12, 8) }
func destination(a netip.Addr) []expr.Any           { return address(expr.CmpOpEq, a, 16, 24) }

// address compares one of the addresses of a packet of the family of a, by its offset in the header of either.
func address(op expr.CmpOp, a netip.Addr, offset4, offset6 uint32) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), offset4
	if a.Is6() {
		family, offset = unix.NFPROTO_IPV6, offset6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(expr.CmpOpEq, []byte{family}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		equal(op, a.AsSlice()),
	}
}

// destinationPort matches TCP's; the protocol is known.
func destinationPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equal(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, port)),
	}
}

func destinationNAT(a netip.Addr, port uint16) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if a.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	}
}

// redirected matches packets of a connection whose destination was rewritten.
func redirected() []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, ipsDstNAT), Xor: make([]byte, 4)},
		equal(expr.CmpOpNeq, make([]byte, 4)),
	}
}

// earlyPackets, of both directions: a reset without ACK among them is dropped. It says that no socket was found for a segment, which need not be so.
// The container's ACK, which completes the handshake, is processed where the helper has written the SYN, and the data after it where
// the container's process runs; the kernel takes the half-open connection out of its table a moment before it puts the connection in, and data that
// come in that moment are answered with a reset (inet_ehash_insert; a few of 100,000 connections). The container sends them again after some milliseconds, and
// they find it. Whatever ends a connection here sends a reset with ACK, and does not rely on this one. Later ones pass: better
// an error too many than none.
const earlyPackets = 8

// replying matches packets in the direction from the relay to the container.
func replying() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, equal(expr.CmpOpEq, []byte{1})} // IP_CT_DIR_REPLY
}

// packets matches while a connection has had at most so many. The rule makes the kernel count.
func packets(most uint64) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyPKTS, Register: 1},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 8, Size: 8},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: binary.BigEndian.AppendUint64(nil, most)},
	}
}

// ruleEvents opens a socket that gets a message about every change of the namespace's rules. Subscribing wants CAP_NET_ADMIN,
// reading nothing.
func ruleEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "nftables events")
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to nftables events: %w", err), f.Close())
	}
	return f, nil
}

// rulesTouched tells whether a datagram of ruleEvents is about a removal from the relay's table, or cannot be read.
func rulesTouched(p []byte) bool {
	const nfgenmsg, nameAttr = 4, 1 // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and NFTA_RULE_TABLE are all 1
	for len(p) > 0 {
		if len(p) < unix.NLMSG_HDRLEN {
			return true
		}
		n := int(binary.NativeEndian.Uint32(p))
		if n < unix.NLMSG_HDRLEN || n > len(p) {
			return true
		}
		typ := binary.NativeEndian.Uint16(p[4:])
		if typ>>8 == unix.NFNL_SUBSYS_NFTABLES {
			switch typ & 0xff {
			case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE:
				name, ok := netlinkAttr(p[unix.NLMSG_HDRLEN:n], nfgenmsg, nameAttr)
				if !ok || bytes.Equal(bytes.TrimRight(name, "\x00"), []byte(tableName)) {
					return true
				}
			}
		}
		p = p[min((n+3)&^3, len(p)):]
	}
	return false
}

// netlinkAttr finds an attribute after a fixed part of skip bytes.
func netlinkAttr(p []byte, skip int, want uint16) ([]byte, bool) {
	if len(p) < skip {
		return nil, false
	}
	const typeMask = 1<<14 - 1 // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	for p = p[skip:]; len(p) >= unix.SizeofRtAttr; {
		n := int(binary.NativeEndian.Uint16(p))
		if n < unix.SizeofRtAttr || n > len(p) {
			return nil, false
		}
		if binary.NativeEndian.Uint16(p[2:])&typeMask == want {
			return p[unix.SizeofRtAttr:n], true
		}
		p = p[min((n+3)&^3, len(p)):]
	}
	return nil, false
}
