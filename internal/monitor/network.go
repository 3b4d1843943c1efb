package monitor

import (
	"fmt"
	"time"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/slirp"
)

// A helper that lived shorter than networkLife has failed; networkTries of them
// in a row are enough.
const (
	networkLife  = 2 * time.Second
	networkTries = 5
)

// awaitTraffic makes an event of the container's first packet.
func (c *container) awaitTraffic() {
	frame, err := slirp.AwaitTraffic(c.tun)
	if err != nil {
		return // the device is gone, and the container with it
	}
	c.events <- event{from: fromTUN, frame: frame}
}

// wakeNetwork starts the network helper, with the packet that asked for it.
func (c *container) wakeNetwork(frame []byte) {
	if c.stopping {
		return
	}
	c.networkSince = time.Now()
	var err error
	c.helper, err = c.startHelper(handoff.Network, KindPorts, c.Slirp)
	if err == nil {
		err = c.helper.conn.Send(KindAttach, Attach{Frame: frame}, c.tun)
	}
	c.noteNetwork(err)
}

// restartNetwork starts a new network helper on the container's TUN. Its
// connections are lost, the network is not. One that keeps failing is given up:
// the container goes on without a network, and its record says why.
func (c *container) restartNetwork(e event) {
	if c.stopping || c.tun == nil {
		return
	}
	if time.Since(c.networkSince) < networkLife {
		c.networkFailures++
	} else {
		c.networkFailures = 0
	}
	if c.networkFailures < networkTries {
		c.wakeNetwork(nil)
		return
	}
	c.noteNetwork(fmt.Errorf("the network helper keeps ending: %s", describe(e.status)))
}

// noteNetwork puts a failure of the network into the container's record.
func (c *container) noteNetwork(err error) {
	if err != nil {
		c.handle.Error = err.Error()
		// The container does not depend on the record.
		_ = c.handle.Save()
	}
}
