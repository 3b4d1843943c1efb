package dnsproxy

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// keepFor is how long an answer is given again to the same question: programs look the same name up in bursts, a connection each.
	// It is the time for which a change of resolv.conf goes unseen too, and so short that a VPN which comes up, or a name
	// that moves, is not missed; the askers' own caches get lifetimes that are right to the second.
	keepFor = resolvCheck
	// keepBytes bounds what is kept in keepFor, questions included.
	keepBytes = 1 << 20
	// keepAnswer is the largest answer that is kept.
	keepAnswer = 4096
)

// cache holds the answers of the last moment, by all of a query but its identifier: flags, case of letters and options included. Two maps
// take turns, so that nothing has to be looked for to be thrown out.
type cache struct {
	mu         sync.Mutex
	now, older map[string]kept
	since      time.Time // when now was begun
	bytes      int       // in now
	of         uint64    // the version of the resolvers that all of it comes from
}

type kept struct {
	answer []byte
	at     time.Time
}

// get gives a copy of a kept answer with the query's identifier, or nil.
func (c *cache) get(q *Query, of uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of != of {
		return nil
	}
	k, ok := c.now[string(q.msg[2:])]
	if !ok {
		k, ok = c.older[string(q.msg[2:])]
	}
	if !ok || time.Since(k.at) >= keepFor {
		return nil
	}
	return append(append(make([]byte, 0, len(k.answer)), q.msg[:2]...), k.answer[2:]...)
}

// put keeps an answer to q, if it is one that may be given again: whole, and with records that all live for a second at least.
func (c *cache) put(q *Query, answer []byte, of uint64) {
	if len(answer) > keepAnswer || !lasts(answer) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.of != of {
		c.now, c.older, c.of = nil, nil, of
	}
	if c.now == nil || now.Sub(c.since) >= keepFor {
		c.older, c.now, c.since, c.bytes = c.now, map[string]kept{}, now, 0
	}
	if c.bytes += len(q.msg) + len(answer); c.bytes > keepBytes {
		return
	}
	c.now[string(q.msg[2:])] = kept{answer: append([]byte(nil), answer...), at: now}
}

// lasts tells whether an answer, positive or negative, is whole and holds for keepFor: each of its records lives for a second or longer, of which
// there is at least one (RFC 2308, 5: a negative answer without an SOA record is not to be kept).
func lasts(answer []byte) bool {
	switch answer[3] & 15 {
	case dns.RcodeSuccess, dns.RcodeNameError:
	default:
		return false
	}
	if answer[2]&2 != 0 || binary.BigEndian.Uint16(answer[4:]) != 1 {
		return false
	}
	records := int(binary.BigEndian.Uint16(answer[6:])) + int(binary.BigEndian.Uint16(answer[8:]))
	if records == 0 {
		return false
	}
	i := skipName(answer, headerSize) + 4
	for range records {
		i = skipName(answer, i)
		if i+10 > len(answer) || binary.BigEndian.Uint32(answer[i+4:]) == 0 {
			return false
		}
		i += 10 + int(binary.BigEndian.Uint16(answer[i+8:]))
	}
	return i <= len(answer)
}

// skipName gives the place behind the name at i, or one behind the message.
func skipName(msg []byte, i int) int {
	for i < len(msg) {
		switch n := int(msg[i]); {
		case n == 0:
			return i + 1
		case n >= 0xc0:
			return i + 2
		default:
			i += 1 + n
		}
	}
	return len(msg)
}
