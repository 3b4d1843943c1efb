package slirp

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// chunk is the most that moves at once. It bounds what a flow holds beside its two socket buffers.
	chunk = 256 << 10
	// gather: shorter pieces are put together, so that a train of small segments is one write.
	gather        = 64 << 10
	keepAliveIdle = 5 * time.Minute
	keepAliveStep = 75 * time.Second
)

var (
	errAgain   = errors.New("socket would block")
	errAborted = errors.New("flow aborted")
)

// flow joins one connection of the stack to one of the host. Two goroutines move the bytes, each with no
// buffer of its own while it waits. A FIN is passed on as a FIN, a RST as a RST.
type flow struct {
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	host *net.TCPConn
	raw  syscall.RawConn
	pool *bytePool // of gather bytes

	gone     chan struct{} // closed when one side is reset: nothing more can move
	goneOnce sync.Once

	moved     *atomic.Int64 // tcp.moved
	delivered func()        // called when the container's FIN has been passed on, or will not be

	mu sync.Mutex
	// The FIN of the container, and of the host, has been passed on.
	containerDone, hostDone bool
}

// splice moves bytes both ways until both ends have closed, one resets, or ctx ends. It owns both, and one of tcp.sending.
func (n *Network) splice(ep tcpip.Endpoint, wq *waiter.Queue, host *net.TCPConn) {
	log := n.log
	delivered := sync.OnceFunc(func() { n.tcp.sending.Add(-1) })
	defer delivered()
	raw, err := host.SyscallConn()
	if err != nil {
		log.Warn("use tcp socket", "err", err)
		ep.Abort()
		abortHost(host, log)
		return
	}
	if err := host.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveStep}); err != nil {
		log.Debug("set keepalive", "err", err)
	}
	keepAlive(ep)
	// If this process is killed, the host's end is to learn that something was lost: a reset, no FIN.
	if err := host.SetLinger(0); err != nil {
		log.Debug("set linger", "err", err)
	}
	f := &flow{ep: ep, wq: wq, host: host, raw: raw, pool: n.gathers, gone: make(chan struct{}), moved: &n.tcp.moved, delivered: delivered}
	stop := context.AfterFunc(n.ctx, f.abort)
	defer stop()

	// A reset from the container must end the wait for the host, also after the container's FIN.
	watch := waiter.NewFunctionEntry(waiter.EventErr|waiter.EventHUp, func(waiter.EventMask) {
		if tcpFailed(ep) {
			f.abort()
		}
	})
	wq.EventRegister(&watch)
	defer wq.EventUnregister(&watch)

	var wg sync.WaitGroup
	wg.Go(func() { f.end(f.toContainer()) })
	f.end(f.toHost())
	wg.Wait()

	select {
	case <-f.gone:
		ep.Abort()
		if n.ctx.Err() == nil || !f.containerDone {
			abortHost(host, log)
			return
		}
		// The end, and what the container sent is with the host's kernel.
	default:
		ep.Close()
	}
	if err := errors.Join(host.SetLinger(-1), host.Close()); err != nil {
		log.Debug("close tcp socket", "err", err)
	}
}

func (f *flow) end(err error) {
	if err != nil {
		f.abort()
	}
}

// abort makes both directions end. The deadline wakes what waits for the host's socket.
func (f *flow) abort() {
	f.goneOnce.Do(func() {
		close(f.gone)
		// The socket can only be closed already, and then nothing waits for it.
		_ = f.host.SetDeadline(time.Unix(1, 0))
	})
}

// toHost moves what the container sends. It returns nil after its FIN has been passed on.
func (f *flow) toHost() error {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	f.wq.EventRegister(&entry)
	defer f.wq.EventUnregister(&entry)
	w := hostWriter{pool: f.pool}
	defer w.release()
	for {
		var terr tcpip.Error
		err := f.raw.Write(func(fd uintptr) bool {
			w.fd = int(fd)
			terr = nil
			if w.err = w.flush(); w.err == nil {
				_, terr = f.ep.Read(&w, tcpip.ReadOptions{})
				if w.err == nil {
					w.err = w.flush()
				}
			}
			return w.err != errAgain
		})
		if err = errors.Join(err, w.failure()); err != nil {
			return err
		}
		f.moved.Add(1)
		switch terr.(type) {
		case nil, *tcpip.ErrBadBuffer:
		case *tcpip.ErrWouldBlock:
			w.release()
			select {
			case <-ready:
			case <-f.gone:
				return errAborted
			}
		case *tcpip.ErrClosedForReceive:
			return f.finishHost()
		default:
			return errors.New(terr.String())
		}
	}
}

// toContainer moves what the host sends. It returns nil when its FIN has been passed on and, after that,
// either the other direction is at its end or the host resets.
func (f *flow) toContainer() error {
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	f.wq.EventRegister(&entry)
	defer f.wq.EventUnregister(&entry)
	for {
		var terr tcpip.Error
		var r hostReader
		err := f.raw.Read(func(fd uintptr) bool {
			r = hostReader{fd: int(fd)}
			if r.fill(); r.err != nil {
				return r.err != errAgain
			}
			_, terr = f.ep.Write(&r, tcpip.WriteOptions{})
			return true
		})
		switch {
		case err != nil:
			return err
		case r.err == io.EOF:
			return f.finishContainer()
		case r.err != nil:
			return r.err
		}
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			select {
			case <-ready:
			case <-f.gone:
				return errAborted
			}
		default:
			return errors.New(terr.String())
		}
	}
}

// finishHost passes the container's FIN on.
func (f *flow) finishHost() error {
	if err := f.host.CloseWrite(); err != nil {
		return err
	}
	defer f.delivered()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containerDone = true
	if f.hostDone {
		return f.host.SetReadDeadline(time.Unix(1, 0)) // wakes finishContainer
	}
	return nil
}

// finishContainer passes the host's FIN on, and then watches the host's socket for a reset while the container
// still sends: without that the container would learn of it only when it sends again.
func (f *flow) finishContainer() error {
	if err := shutdownWrite(f.ep); err != nil {
		return err
	}
	f.mu.Lock()
	f.hostDone = true
	over := f.containerDone
	f.mu.Unlock()
	if over {
		return nil
	}
	var serr error
	err := f.raw.Read(func(fd uintptr) bool {
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && n != 0 {
			err = syscall.Errno(n)
		}
		serr = err
		return err != nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // the other direction has ended, or the flow is aborted already
	}
	return errors.Join(err, serr)
}
