package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/thrift"
)

// Union is the main function of the stage that serves an image (P2): for reading,
// for all containers of a holder or, where the holder is gone, for one; or with
// the writable layer of one container.
func Union() { helper(union) }

func union(parent *handoff.Conn) error {
	m, err := parent.Recv()
	if err != nil {
		return err
	}
	switch m.Kind {
	case KindTree:
		return unionMain(parent, m)
	case holder.KindServe:
		return serveImage(parent, m)
	}
	return fmt.Errorf("serve image: unknown message %q", m.Kind)
}

// serveImage serves an image for reading.
func serveImage(parent *handoff.Conn, m *handoff.Message) error {
	var img Image
	if err := m.Decode(&img); err != nil {
		return err
	}
	tree, err := openTree(&img)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	dev, mount, err := mountFuse(fuseunion.MountOptions{})
	if err != nil {
		return err
	}
	if err := parent.Send(holder.KindMounted, nil, mount); err != nil {
		return err
	}
	// Closed before anything is asked of the mount: whoever has the other
	// descriptors keeps it.
	if err := mount.Close(); err != nil {
		return err
	}
	// The image server only reads the caller's own files.
	if err := handoff.DropCapabilities(); err != nil {
		return err
	}
	if len(m.Files) == 1 {
		if img.Serve.List, err = fuseunion.SendListings(m.Files[0]); err != nil {
			return err
		}
	}
	// How busy it is only package fuseunion knows; what a start reads is over by then, for most.
	var memory thrift.Thrift
	memory.Busy()
	if err := fuseunion.Serve(context.Background(), dev, tree, img.Serve); err != nil {
		return fmt.Errorf("serve image: %w", err)
	}
	return nil
}

func mountFuse(opt fuseunion.MountOptions) (dev, mount *os.File, err error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &hintError{
			fmt.Errorf("open /dev/fuse: %w", err),
			"images are served through FUSE: have the administrator run: modprobe fuse; chmod 666 /dev/fuse",
		}
	}
	dev = os.NewFile(uintptr(fd), "/dev/fuse")
	if mount, err = fuseunion.Mount(dev, opt); err != nil {
		return nil, nil, errors.Join(err, dev.Close())
	}
	return dev, mount, nil
}

// below has what is below the writable layer served, as far as it is certain what
// will be needed.
func (c *container) below() error {
	switch {
	case c.Plain:
		return nil // init has it as plain files
	case c.Storage == stage.StorageFuse:
		return c.startUnion()
	case c.Image != nil:
		return c.mountImage()
	}
	return nil
}

// mountImage has the image mounted and gives the mount to init: by the server that
// the holder's containers share or, where the holder is gone, by one of this
// container's own, whose mount comes as an event.
func (c *container) mountImage() error {
	mount, server, err := c.holder.Mount(*c.Image)
	if errors.Is(err, handoff.ErrNobody) {
		c.union, err = c.startHelper(handoff.Union, holder.KindServe, c.Image)
		return err
	}
	if err != nil {
		return err
	}
	defer mount.Close()
	go c.watchServer(server)
	return c.init.conn.Send(stage.KindImage, nil, mount)
}

// watchServer makes an event of the end of a server that is nobody's child here.
func (c *container) watchServer(process *os.File) {
	defer process.Close()
	if state.AwaitEnd(process) == nil { // else the container's own failing reads tell it
		c.events <- event{from: fromServer, ended: true}
	}
}

// hintError is an error with a known cure.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }
func (e *hintError) Hint() string  { return e.hint }
