package dnsproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"
)

// tcpTimeout bounds a question over TCP.
const tcpTimeout = 2 * time.Second

var errStrange = errors.New("answer to another question")

// askTCP sends one query over a connection of its own.
func askTCP(ctx context.Context, server netip.AddrPort, q *Query) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tcpTimeout)
	defer cancel()
	dialer := net.Dialer{KeepAlive: -1}
	conn, err := dialer.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	id := randomID()
	out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(q.msg)), uint16(len(q.msg)))
	out = append(binary.BigEndian.AppendUint16(out, id), q.msg[2:]...)
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	in, err := ReadTCP(conn)
	if err != nil {
		return nil, err
	}
	if !answers(in, q.wire()) || binary.BigEndian.Uint16(in) != id {
		return nil, errStrange
	}
	copy(in, q.msg[:2])
	return in, nil
}

// ReadTCP reads one message with its length before it (RFC 1035, 4.2.2).
func ReadTCP(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

// WriteTCP writes one message with its length before it.
func WriteTCP(w io.Writer, msg []byte) error {
	out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.Write(append(out, msg...))
	return err
}
