package slirp

import (
	"errors"
	"log/slog"
	"net"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// abortHost closes a host connection with a reset.
func abortHost(c *net.TCPConn, log *slog.Logger) {
	if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
		log.Debug("reset tcp socket", "err", err)
	}
}

// tcpFailed tells whether a connection of the stack was reset or timed out, as opposed to closed by both.
func tcpFailed(ep tcpip.Endpoint) bool {
	return tcp.EndpointState(ep.State()) == tcp.StateError
}

func shutdownWrite(ep tcpip.Endpoint) error {
	if err := ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		if _, ok := err.(*tcpip.ErrNotConnected); !ok {
			return errors.New(err.String())
		}
	}
	return nil
}

// keepAlive finds out in time that the container's end is gone without a word (it was frozen or killed with its
// interface down), so that the flow does not stay for ever.
func keepAlive(ep tcpip.Endpoint) {
	idle, step := tcpip.KeepaliveIdleOption(keepAliveIdle), tcpip.KeepaliveIntervalOption(keepAliveStep)
	for _, opt := range []tcpip.SettableSocketOption{&idle, &step} {
		if err := ep.SetSockOpt(opt); err != nil {
			return // a connection that has just ended
		}
	}
	ep.SocketOptions().SetKeepAlive(true)
	ep.SocketOptions().SetDelayOption(false) // no Nagle: the sender inside has done that already
}

// insideTimeout is how long a container may take to answer a SYN from a published port.
const insideTimeout = 30 * time.Second
