package server

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/network"
)

// uplinkName is the device that leads out; package slirp calls it so.
const uplinkName = "tun0"

// translation leads a port of the uplink's address to a container.
type translation struct {
	proto string
	port  uint16 // of the uplink
	to4   netip.AddrPort
	to6   netip.AddrPort // zero: IPv6 has no way to it
}

// filter replaces all rules, in one transaction: packets see the old ones or the new ones.
func (s *server) filter() error {
	return s.thread.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "urun"}
		// Adding what is there does nothing, and what is there can be deleted.
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		s.natRules(c, table)
		s.forwardRules(c, table)
		s.inputRules(c, table)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("set nftables rules (the kernel needs nf_tables, nft_nat and nft_masq): %w", err)
		}
		return nil
	})
}

func (s *server) natRules(c *nftables.Conn, table *nftables.Table) {
	post := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: all})
	}
	add(post, outBy(uplinkName), []expr.Any{&expr.Masq{}})
	pre := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	for _, t := range s.translations() {
		proto := byte(unix.IPPROTO_TCP)
		if t.proto == "udp" {
			proto = unix.IPPROTO_UDP
		}
		for _, to := range []netip.AddrPort{t.to4, t.to6} {
			if to.IsValid() {
				add(pre, inBy(uplinkName), family(to.Addr()), port(proto, t.port), dnat(to))
			}
		}
	}
}

// forwardRules keep networks apart. Packets that a bridge passes between its own ports come here only where the
// host has br_netfilter.
func (s *server) forwardRules(c *nftables.Conn, table *nftables.Table) {
	refuse := nftables.ChainPolicyDrop
	forward := c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &refuse,
	})
	rule := func(exprs ...[]expr.Any) {
		var all []expr.Any
		for _, e := range exprs {
			all = append(all, e...)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: all})
	}
	rule(established(), verdict(expr.VerdictAccept))
	rule(inBy(uplinkName), verdict(expr.VerdictAccept)) // slirp makes connections to published ports only
	for _, n := range s.active() {
		rule(inBy(n.Bridge()), outBy(n.Bridge()), verdict(expr.VerdictAccept))
		if !n.Internal {
			rule(inBy(n.Bridge()), outBy(uplinkName), verdict(expr.VerdictAccept))
		}
	}
	// A refusal is heard at once, a silence after minutes.
	rule([]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
}

// inputRules leave nothing of this namespace to containers but the resolver and echo.
func (s *server) inputRules(c *nftables.Conn, table *nftables.Table) {
	refuse := nftables.ChainPolicyDrop
	input := c.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &refuse,
	})
	rule := func(exprs ...[]expr.Any) {
		var all []expr.Any
		for _, e := range exprs {
			all = append(all, e...)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: append(all, verdict(expr.VerdictAccept)...)})
	}
	rule(inBy("lo"))
	rule(established())
	rule(l4proto(unix.IPPROTO_ICMP))
	rule(l4proto(unix.IPPROTO_ICMPV6))
	for _, n := range s.active() {
		rule(inBy(n.Bridge()), port(unix.IPPROTO_UDP, 53))
		rule(inBy(n.Bridge()), port(unix.IPPROTO_TCP, 53))
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH},
	}})
}

func inBy(name string) []expr.Any  { return device(expr.MetaKeyIIFNAME, name) }
func outBy(name string) []expr.Any { return device(expr.MetaKeyOIFNAME, name) }

func device(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded}}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func established() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func l4proto(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

// port matches the destination port, which TCP and UDP have in the same place.
func port(proto byte, number uint16) []expr.Any {
	return append(l4proto(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, number)},
	)
}

func family(a netip.Addr) []expr.Any {
	proto := byte(unix.NFPROTO_IPV6)
	if a.Is4() {
		proto = unix.NFPROTO_IPV4
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

func dnat(to netip.AddrPort) []expr.Any {
	fam := uint32(unix.NFPROTO_IPV6)
	if to.Addr().Is4() {
		fam = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

// active are the networks that a container is on.
func (s *server) active() []*network.Network {
	return slices.Collect(maps.Values(s.networks))
}
