package dnsproxy

import (
	"encoding/binary"
	"slices"

	"github.com/miekg/dns"
)

const (
	headerSize = 12
	// minUDPSize is what every asker takes in a datagram (RFC 1035, 4.2.1).
	minUDPSize = 512
	// maxName bounds a name in its written form, dots included.
	maxName = 254
)

// Question is the one question of a query.
type Question struct {
	Name        string // lower case, no final dot; any bytes else
	Type, Class uint16
}

// parseQuestion reads the question of a query without the rest; end is where it ends. ok is false for a message
// that does not have exactly one, well formed and uncompressed.
func parseQuestion(msg []byte) (q Question, end int, ok bool) {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return q, 0, false
	}
	var buf [maxName]byte
	name := buf[:0]
	i := headerSize
	for {
		if i >= len(msg) {
			return q, 0, false
		}
		n := int(msg[i])
		i++
		if n == 0 {
			break
		}
		if n > 63 || i+n > len(msg) || len(name)+n+1 > maxName {
			return q, 0, false
		}
		if len(name) > 0 {
			name = append(name, '.')
		}
		for _, b := range msg[i : i+n] {
			name = append(name, lower(b))
		}
		i += n
	}
	if i+4 > len(msg) {
		return q, 0, false
	}
	q.Name = string(name)
	q.Type, q.Class = binary.BigEndian.Uint16(msg[i:]), binary.BigEndian.Uint16(msg[i+2:])
	return q, i + 4, true
}

// lower is the only folding that names know (RFC 4343): they are bytes, not text.
func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b
}

// sameName compares questions as lower has them.
func sameName(a, b []byte) bool {
	return slices.EqualFunc(a, b, func(x, y byte) bool { return lower(x) == lower(y) })
}

// isQuery tells whether a message is one that can be answered at all.
func isQuery(msg []byte) bool { return len(msg) >= headerSize && msg[2]&0x80 == 0 }

// udpSize is the largest answer that the asker takes in a datagram: 512, or what its EDNS option says. end is where
// the question ends.
func udpSize(msg []byte, end int) int {
	counts := binary.BigEndian.Uint64(msg[4:])
	switch {
	case counts&0xffff == 0:
		return minUDPSize // nothing additional
	case counts == 1<<48|1 && len(msg) >= end+5 && msg[end] == 0 && binary.BigEndian.Uint16(msg[end+1:]) == dns.TypeOPT:
		// What everybody sends: one question, and the option right behind it.
		return max(int(binary.BigEndian.Uint16(msg[end+3:])), minUDPSize)
	}
	var m dns.Msg
	if m.Unpack(msg) != nil {
		return minUDPSize
	}
	if opt := m.IsEdns0(); opt != nil {
		return max(int(opt.UDPSize()), minUDPSize)
	}
	return minUDPSize
}

// refusal is an answer with an error code; msg is the header of the query, and the question if it was understood.
func refusal(msg []byte, code byte) []byte {
	out := append([]byte(nil), msg...)
	out[2] = out[2]&0x79 | 0x80 // QR beside opcode and RD
	out[3] = 0x80 | code
	clear(out[6:headerSize])
	if len(out) == headerSize {
		clear(out[4:6])
	}
	return out
}

// truncate cuts an answer that is longer than limit: it keeps what records fit and sets TC, so that an asker that
// knows no TCP has some addresses. One that cannot be read is cut down to its question of length question.
func truncate(reply []byte, question, limit int) []byte {
	if len(reply) <= limit || len(reply) < headerSize+question {
		return reply
	}
	var m dns.Msg
	if m.Unpack(reply) == nil {
		m.Truncate(limit)
		if out, err := m.Pack(); err == nil && len(out) <= limit {
			return out
		}
	}
	reply = reply[:headerSize+question]
	reply[2] |= 2
	clear(reply[6:headerSize])
	return reply
}

// answers tells whether in is an answer to question. It repeats the question, in which only the case of letters may
// differ; one that reports an error may leave it out.
func answers(in, question []byte) bool {
	if len(in) < headerSize || in[2]&0x80 == 0 {
		return false
	}
	if binary.BigEndian.Uint16(in[4:]) == 0 {
		return in[3]&15 != dns.RcodeSuccess
	}
	return len(in) >= headerSize+len(question) && sameName(in[headerSize:headerSize+len(question)], question)
}

// settles tells whether an answer leaves nothing to ask another server for.
func settles(reply []byte) bool {
	switch reply[3] & 15 {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
		return false
	}
	return true
}
