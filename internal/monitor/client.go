package monitor

import (
	"errors"
	"fmt"
	"os"

	"github.com/urun-dev/urun/internal/handoff"
)

// client is a command that is attached to a container: the one that started it
// in the foreground, which is the primary, or another.
//
// The primary is the reader of the container's output as the reader of a pipe
// is: what it does not read stops the writer, and nothing is lost. All others
// only look on: one that does not keep up is let go.
type client struct {
	primary bool
	conn    *handoff.Conn
	files   [3]*os.File // input, output, errors; nil where not asked for

	queue  chan chunk // of one that only looks on
	failed bool       // it can not be written to
	ended  bool       // nothing is written to it any more
}

type chunk struct {
	data   []byte
	stream int
}

// backlog is how many chunks may wait for a client.
const backlog = 64

// add lets a command look on.
func (o *output) add(c *client) {
	c.queue = make(chan chunk, backlog)
	o.writers.Add(1)
	go func() {
		defer o.writers.Done()
		for p := range c.queue {
			if f := c.files[p.stream]; f != nil && !c.failed {
				if _, err := f.Write(p.data); err != nil {
					c.failed = true
				}
			}
		}
		c.closeFiles()
	}()
	o.mu.Lock()
	o.clients[c] = true
	o.mu.Unlock()
	go o.feed(c)
}

// remove lets a client go.
func (o *output) remove(c *client) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drop(c)
}

func (o *output) drop(c *client) {
	if o.clients[c] {
		delete(o.clients, c)
		c.end()
	}
}

// end stops writing to a client, after what waits for it.
func (c *client) end() {
	if c.ended {
		return
	}
	c.ended = true
	if c.queue != nil {
		close(c.queue)
		return
	}
	c.closeFiles()
}

func (c *client) closeFiles() {
	for _, f := range c.files {
		if f != nil {
			f.Close()
		}
	}
}

// send gives output to all clients. It tells whether nobody will ever read any
// more: the primary has closed its pipe, and the container is to learn of it as
// from a pipe of its own.
func (o *output) send(data []byte, stream int) (broken bool) {
	o.mu.Lock()
	var primary *client
	var shared []byte
	for c := range o.clients {
		if c.primary {
			primary = c
			continue
		}
		if c.ended {
			continue
		}
		if shared == nil {
			shared = append([]byte(nil), data...) // the buffer is used again
		}
		select {
		case c.queue <- chunk{shared, stream}:
		default:
			// It learns why; its end of the channel makes it forgotten.
			_ = c.conn.Send(KindFailed, failure("attach: the output came faster than it was read; see the log for all of it"))
			o.drop(c)
		}
	}
	o.mu.Unlock()
	if primary == nil || primary.files[stream] == nil {
		return false
	}
	// Not under the lock: it may take as long as it takes.
	if _, err := primary.files[stream].Write(data); err != nil {
		return o.master == nil && o.present(primary)
	}
	return false
}

// present tells whether a client is still attached.
func (o *output) present(c *client) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.clients[c]
}

// primary is the client that started the container, nil if it did not stay.
func (o *output) first() *client {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.clients {
		if c.primary {
			return c
		}
	}
	return nil
}

// tell sends the last word to all that look on.
func (o *output) tell(kind string, body any) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.clients {
		if !c.primary {
			_ = c.conn.Send(kind, body) // it may be gone
		}
	}
}

func (c *container) attach(conn *handoff.Conn, m *handoff.Message) error {
	var req AttachRequest
	if err := m.Decode(&req); err != nil {
		return err
	}
	if c.running.Load() == nil {
		return errNotRunning
	}
	if c.out == nil {
		return errors.New("attach: the output goes to the command that runs the container in the foreground")
	}
	if len(m.Files) != 3 {
		return fmt.Errorf("attach: got %d files", len(m.Files))
	}
	cl := &client{conn: conn, files: [3]*os.File(m.Files)}
	m.Files = nil
	if !req.Stdin {
		cl.files[0].Close()
		cl.files[0] = nil
	}
	if err := conn.Send(KindStarted, Started{}); err != nil {
		cl.closeFiles()
		return nil // it is gone
	}
	c.out.add(cl)
	c.out.resize(req.Size)
	defer c.out.remove(cl)
	return c.serve(conn)
}
