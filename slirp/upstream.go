package slirp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	// firstWait: a resolver that is silent for so long is passed over for the next.
	firstWait = 800 * time.Millisecond
	lastWait  = 4 * time.Second
)

// upstream asks the host's resolvers.
type upstream struct {
	servers *resolvers
	dialer  net.Dialer
	bufs    *bytePool
}

func newUpstream(n *Network) *upstream {
	return &upstream{
		servers: &resolvers{path: n.cfg.ResolvConf, fixed: n.cfg.Resolvers},
		dialer:  net.Dialer{KeepAlive: -1},
		bufs:    newBytePool(dns.MaxMsgSize),
	}
}

// exchange sends a query to the resolvers in their order until one gives an answer that settles it. A resolver
// that fails, refuses or is silent for firstWait is followed by the next; the last has longer, and if all
// were silent the first is asked once more, since a datagram may be lost. limit bounds the answer's length; a
// longer one becomes an empty one with TC set.
func (u *upstream) exchange(ctx context.Context, msg, question []byte, tcp bool, limit int) ([]byte, error) {
	servers := u.servers.list()
	var errs []error
	var worst []byte // an answer that settles nothing, better than none
	for i := range len(servers) + 1 {
		wait := firstWait
		if i >= len(servers)-1 {
			wait = lastWait / 2
		}
		server := servers[i%len(servers)]
		reply, err := u.ask(ctx, server, msg, question, tcp, wait)
		if err == nil && !tcp && reply[2]&2 != 0 {
			// Truncated. The asker's own limit may be higher than what came through.
			if full, terr := u.ask(ctx, server, msg, question, true, wait); terr == nil {
				reply = full
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("ask resolver %s: %w", server, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if code := reply[3] & 15; code == dns.RcodeServerFailure || code == dns.RcodeRefused || code == dns.RcodeNotImplemented {
			worst = reply
			if i >= len(servers)-1 {
				break
			}
			continue
		}
		return truncate(reply, len(question), limit), nil
	}
	if worst != nil {
		return truncate(worst, len(question), limit), nil
	}
	return nil, errors.Join(errs...)
}

// truncate cuts an answer that is longer than limit down to its question, with TC set.
func truncate(reply []byte, question, limit int) []byte {
	if len(reply) <= limit || len(reply) < 12+question {
		return reply
	}
	reply = reply[:12+question]
	reply[2] |= 2
	clear(reply[6:12])
	return reply
}

var errStrange = errors.New("answer to another question")

// ask sends one query to one resolver. The identifier is a new one and the socket too, so that an answer is hard
// to forge whatever identifiers the container uses.
func (u *upstream) ask(ctx context.Context, server netip.AddrPort, msg, question []byte, tcp bool, wait time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	conn, err := u.dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	buf := u.bufs.get()
	defer u.bufs.put(buf)
	var id [2]byte
	rand.Read(id[:]) // never fails: crypto/rand
	out := append((*buf)[:0], 0, 0)
	if !tcp {
		out = out[:0]
	} else {
		binary.BigEndian.PutUint16(out, uint16(len(msg)))
	}
	out = append(append(out, id[:]...), msg[2:]...)
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	for {
		in, err := readMessage(conn, (*buf)[:cap(*buf)], tcp)
		if err != nil {
			return nil, err
		}
		if len(in) < 12 || [2]byte(in) != id || in[2]&0x80 == 0 || !sameQuestion(in, question) {
			if tcp {
				return nil, errStrange
			}
			continue // a late or forged datagram: the answer may still come
		}
		reply := append([]byte(nil), in...)
		copy(reply, msg[:2])
		return reply, nil
	}
}

// sameQuestion: an answer repeats the question, in which only the case of letters may differ; one that reports an
// error may leave it out.
func sameQuestion(in, question []byte) bool {
	if binary.BigEndian.Uint16(in[4:]) == 0 {
		return in[3]&15 != dns.RcodeSuccess
	}
	return len(in) >= 12+len(question) && bytes.EqualFold(in[12:12+len(question)], question)
}

func readMessage(conn net.Conn, buf []byte, tcp bool) ([]byte, error) {
	if !tcp {
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	if _, err := io.ReadFull(conn, buf[:2]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(buf))
	if n > len(buf) {
		return nil, io.ErrShortBuffer
	}
	_, err := io.ReadFull(conn, buf[:n])
	return buf[:n], err
}
