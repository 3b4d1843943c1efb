// Package wire is what the virtual host's agent and its caller say to each other over a virtio-serial port: one command
// at a time, its standard files, signals and exit status.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Port is the name of the virtio-serial port.
const Port = "org.urun.agent"

// Kind is what a frame carries.
type Kind byte

// Frames to the agent: Start begins a command, then any number of Stdin, one EOF, and Signal and Size at any time.
// Frames from the agent: Ready once, when the host is up; Stdout and Stderr; Exit ends a command.
const (
	Start  Kind = 'S' // Command
	Stdin  Kind = 'i' // bytes
	EOF    Kind = 'e' // nothing: the end of stdin
	Signal Kind = 'k' // Number
	Size   Kind = 'w' // Window
	Ready  Kind = 'R' // Boot
	Stdout Kind = 'o' // bytes
	Stderr Kind = 'r' // bytes
	Exit   Kind = 'X' // Status
)

// Command is what to run. User "" is root; another gets the environment of a login, in a login session's cgroup if the
// user has a running user manager. TTY gives it a terminal of the size of Window.
type Command struct {
	User   string   `json:"user,omitempty"`
	Args   []string `json:"args"`
	Env    []string `json:"env,omitempty"`
	TTY    bool     `json:"tty,omitempty"`
	Window Window   `json:"window,omitzero"`
}

// Window is the size of a terminal.
type Window struct{ Rows, Cols uint16 }

// Boot says how long the host took, in seconds since the kernel started.
type Boot struct {
	Uptime float64 `json:"uptime"`
	Kernel string  `json:"kernel"`
}

// Status is how a command ended: its exit status or the number of the signal that killed it, or why it did not start.
type Status struct {
	Code   int    `json:"code"`
	Signal int    `json:"signal,omitempty"`
	Error  string `json:"error,omitempty"`
}

// maxFrame bounds a frame's payload, in bytes.
const maxFrame = 1 << 20

// Conn sends and receives frames. Several goroutines may send; one receives.
type Conn struct {
	rw io.ReadWriter
	mu sync.Mutex
}

// New makes a Conn over a byte stream.
func New(rw io.ReadWriter) *Conn { return &Conn{rw: rw} }

// Send sends bytes in one frame.
func (c *Conn) Send(k Kind, data []byte) error {
	if len(data) > maxFrame {
		return fmt.Errorf("send frame %q: %d bytes are too many", k, len(data))
	}
	frame := make([]byte, 5, 5+len(data))
	frame[0] = byte(k)
	binary.BigEndian.PutUint32(frame[1:], uint32(len(data)))
	frame = append(frame, data...)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.rw.Write(frame)
	return err
}

// SendValue sends a value as JSON.
func (c *Conn) SendValue(k Kind, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Send(k, data)
}

// Recv waits for a frame.
func (c *Conn) Recv() (Kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.rw, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("receive frame %q: %d bytes are too many", head[0], n)
	}
	data := make([]byte, n)
	_, err := io.ReadFull(c.rw, data)
	return Kind(head[0]), data, err
}

// Writer makes every write a frame of one kind.
func (c *Conn) Writer(k Kind) io.Writer { return writer{c, k} }

type writer struct {
	c *Conn
	k Kind
}

func (w writer) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, 32<<10)
		if err := w.c.Send(w.k, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}
