package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// packetLimit is the largest body sent inside a packet. A packet must fit
	// the socket's send buffer (net.core.wmem_default, 208 KiB, less the
	// kernel's overhead); larger bodies travel in a memfd.
	packetLimit = 32 << 10
	// filesLimit is far below the kernel's SCM_MAX_FD of 253.
	filesLimit = 32
)

// Conn is one end of a message channel between two stages. Sending is safe
// from several goroutines; receiving is for one at a time.
type Conn struct {
	unix *net.UnixConn
	send sync.Mutex
}

// Message is one received message. The receiver owns its Files.
type Message struct {
	Kind  string
	Body  json.RawMessage
	Files []*os.File
}

// envelope is what a packet holds. Spilled says that the body is the content
// of the last file.
type envelope struct {
	Kind    string          `json:"kind"`
	Body    json.RawMessage `json:"body,omitempty"`
	Spilled bool            `json:"spilled,omitempty"`
}

// Pair makes a connected channel: one end to use here and one to donate to a
// stage.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "stage")
	ours, err := FromFile(os.NewFile(uintptr(fds[0]), "handoff"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// FromFile makes a channel of a SOCK_SEQPACKET socket and closes f.
func FromFile(f *os.File) (*Conn, error) {
	c, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("handoff socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("handoff socket: not a unix socket: %T", c), c.Close())
	}
	return &Conn{unix: u}, nil
}

// Close closes this end; the peer's Recv then returns io.EOF.
func (c *Conn) Close() error { return c.unix.Close() }

// SetDeadline bounds the wait of later Recv calls; the zero time is no bound.
func (c *Conn) SetDeadline(t time.Time) error { return c.unix.SetReadDeadline(t) }

// File returns a duplicate of this end, to be donated to another process.
func (c *Conn) File() (*os.File, error) { return c.unix.File() }

// Send sends one message. The files stay open here; the peer gets duplicates.
func (c *Conn) Send(kind string, body any, files ...*os.File) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode message %s: %w", kind, err)
	}
	env := envelope{Kind: kind, Body: raw}
	if len(raw) > packetLimit {
		f, err := memfile(kind, raw)
		if err != nil {
			return err
		}
		defer f.Close()
		env.Body, env.Spilled = nil, true
		files = append(files[:len(files):len(files)], f)
	}
	packet, err := json.Marshal(env)
	if err != nil {
		return fmt.Errorf("encode message %s: %w", kind, err)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	c.send.Lock()
	defer c.send.Unlock()
	if _, _, err := c.unix.WriteMsgUnix(packet, oob, nil); err != nil {
		return fmt.Errorf("send message %s: %w", kind, err)
	}
	return nil
}

// Recv waits for the next message. It returns io.EOF when the peer's end is
// closed.
func (c *Conn) Recv() (*Message, error) {
	packet := make([]byte, 2*packetLimit)
	oob := make([]byte, unix.CmsgSpace(4*filesLimit))
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(packet, oob)
	if errors.Is(err, unix.ECONNRESET) {
		// The peer ended before it had read all that we sent (unix_release_sock, net/unix/af_unix.c). This is told once,
		// and first: what the peer had said, such as why it ended, is still to be read.
		n, oobn, flags, _, err = c.unix.ReadMsgUnix(packet, oob)
	}
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("receive message: %w", err)
	}
	files, err := parseFiles(oob[:oobn])
	if err != nil {
		return nil, err
	}
	msg := &Message{Files: files}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		msg.Close()
		return nil, errors.New("receive message: truncated")
	}
	if err := msg.decode(packet[:n]); err != nil {
		msg.Close()
		return nil, err
	}
	return msg, nil
}

// Expect receives the next message and checks its kind.
func (c *Conn) Expect(kind string) (*Message, error) {
	m, err := c.Recv()
	if err != nil {
		return nil, err
	}
	if m.Kind != kind {
		m.Close()
		return nil, fmt.Errorf("receive message: got %q, want %q", m.Kind, kind)
	}
	return m, nil
}

// Decode unmarshals the body into v.
func (m *Message) Decode(v any) error {
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("decode message %s: %w", m.Kind, err)
	}
	return nil
}

// Close closes the message's files.
func (m *Message) Close() {
	for _, f := range m.Files {
		f.Close()
	}
	m.Files = nil
}

func (m *Message) decode(packet []byte) error {
	var env envelope
	if err := json.Unmarshal(packet, &env); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	m.Kind, m.Body = env.Kind, env.Body
	if !env.Spilled {
		return nil
	}
	if len(m.Files) == 0 {
		return fmt.Errorf("decode message %s: no body", m.Kind)
	}
	last := len(m.Files) - 1
	f := m.Files[last]
	m.Files = m.Files[:last]
	defer f.Close()
	body, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	if err != nil {
		return fmt.Errorf("read message %s: %w", m.Kind, err)
	}
	m.Body = body
	return nil
}

func memfile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("urun-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		return nil, errors.Join(fmt.Errorf("write memfd: %w", err), f.Close())
	}
	return f, nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // other control messages carry no files
		}
		for _, fd := range fds {
			// net.UnixConn asks for MSG_CMSG_CLOEXEC, so nothing leaks into an
			// execve that happens meanwhile.
			files = append(files, os.NewFile(uintptr(fd), "donated"))
		}
	}
	return files, nil
}
