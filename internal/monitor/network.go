package monitor

import (
	"errors"
	"fmt"
	"os"
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

// preparedNetwork is what the driver "kernel" needs, or why there is only the
// next one. Like the TUN it outlives helpers.
type preparedNetwork struct {
	redirect *slirp.Redirect
	err      error
}

// errNotWanted is why a driver that could be had is not used.
var errNotWanted = errors.New("as the option driver says")

// prepareNetwork makes the rules and sockets of the driver "kernel", if that may be
// used. It takes some milliseconds, in which the helper starts.
func prepareNetwork(cfg slirp.Config, tun *os.File) *preparedNetwork {
	if cfg.Driver == slirp.DriverNetstack {
		return &preparedNetwork{err: errNotWanted}
	}
	r, err := slirp.PrepareKernel(cfg, tun)
	return &preparedNetwork{r, err}
}

// awaitTraffic makes an event of the container's first packet.
func (c *container) awaitTraffic() {
	frame, err := slirp.AwaitTraffic(c.tun)
	if err != nil {
		return // the device is gone, and the container with it
	}
	c.events <- event{from: fromTUN, frame: frame}
}

// fromTUN handles the first packet, and the end of the preparations for it.
func (c *container) fromTUN(e event) {
	if e.prepared == nil {
		c.wakeNetwork(e.frame)
		return
	}
	c.prepared = e.prepared
	if !c.stopping && c.helper != nil {
		c.noteNetwork(c.attachNetwork(e.frame))
	}
}

// wakeNetwork starts the network helper, with the packet that asked for it.
func (c *container) wakeNetwork(frame []byte) {
	if c.stopping {
		return
	}
	c.networkSince, c.attached = time.Now(), false
	prepared := c.prepared != nil
	if !prepared {
		go c.prepare(frame)
	}
	var err error
	c.helper, err = c.startHelper(handoff.Network, KindPorts, c.Slirp)
	if err == nil && prepared {
		err = c.attachNetwork(frame)
	}
	c.noteNetwork(err)
}

// prepare makes an event of the preparations' end.
func (c *container) prepare(frame []byte) {
	c.events <- event{from: fromTUN, frame: frame, prepared: prepareNetwork(c.Slirp, c.tun)}
}

// attachNetwork gives the helper what it works on.
func (c *container) attachNetwork(frame []byte) error {
	files := []*os.File{c.tun}
	c.handle.NetworkDriver = slirp.DriverKernel
	if c.prepared.err != nil {
		c.handle.NetworkDriver = slirp.DriverNetstack + ": " + c.prepared.err.Error()
	} else {
		files = append(files, c.prepared.redirect.Files...)
	}
	// The container does not depend on the record.
	_ = c.handle.Save()
	c.attached = true
	return c.helper.conn.Send(KindAttach, Attach{Frame: frame}, files...)
}

// driverChanged takes down that the helper had to change to another driver.
func (c *container) driverChanged(e event) {
	var d Driver
	if err := e.msg.Decode(&d); err == nil {
		c.handle.NetworkDriver = d.Name + ": " + d.Reason
		_ = c.handle.Save()
	}
}

// restartNetwork starts a new network helper on the container's TUN. Its
// connections are lost, the network is not. One that keeps failing is given up:
// the container goes on without a network, and its record says why.
func (c *container) restartNetwork(e event) {
	if c.stopping {
		return
	}
	if c.tun == nil {
		c.noteNetwork(fmt.Errorf("the network's program %s ended: %s", c.Slirp.Program, describe(e.status)))
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

// takePorts notes which ports were bound. A helper that takes the place of this
// one is to have the same, random ones included.
func (c *container) takePorts(e event) error {
	var bound []slirp.PortMapping
	if err := e.msg.Decode(&bound); err != nil {
		return err
	}
	c.Slirp.Ports, c.handle.Ports = bound, published(bound)
	return nil
}

// noteNetwork puts a failure of the network into the container's record.
func (c *container) noteNetwork(err error) {
	if err != nil {
		c.handle.Error = err.Error()
		// The container does not depend on the record.
		_ = c.handle.Save()
	}
}
