package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/cure"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/rootfs"
	"github.com/urun-dev/urun/internal/stage"
)

// openLower opens what is below a writable layer.
func openLower(img *Image) (fuseunion.Lower, error) {
	if img.Dir != "" {
		return fuseunion.OpenDir(img.Dir)
	}
	return openTree(img)
}

// openTree opens an image's tree to be served.
func openTree(img *Image) (*fuseunion.Tree, error) {
	tree, err := fuseunion.OpenTree(img.Tree, img.Data)
	if err != nil {
		return nil, err
	}
	// Whoever reads gets EIO; the command that started the container finds the note. A store of somebody else
	// takes none.
	tree.OnDamage(func(e *fuseunion.ContentError) { _ = e.Note() })
	return tree, nil
}

// unionMain is the union stage of a container with a writable layer of ours.
func unionMain(parent *handoff.Conn, m *handoff.Message) error {
	var img Image
	if err := m.Decode(&img); err != nil {
		return err
	}
	lower, err := openLower(&img)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	if m, err = parent.Expect(KindServe); err != nil {
		return err
	}
	if n := len(m.Files); n != 1 && n != 2 {
		return fmt.Errorf("serve image: got %d files", n)
	}
	if len(m.Files) == 2 {
		if img.Serve.List, err = fuseunion.SendListings(m.Files[1]); err != nil {
			return err
		}
	}
	var how Serve
	if err := m.Decode(&how); err != nil {
		return err
	}
	if how.Memory {
		mem, err := rootfs.DetachedLayer()
		if err != nil {
			return err
		}
		defer mem.Close()
		dir := fmt.Sprintf("/proc/self/fd/%d/", mem.Fd())
		how.Upper, how.Work, how.Volatile = dir+"upper", dir+"work", true
	}
	// The server only reads and writes the caller's own files.
	if err := handoff.DropCapabilities(); err != nil {
		return err
	}
	return serveUnion(m.Files[0], lower, img.Serve, &how)
}

// serveUnion serves a mount with a writable layer.
func serveUnion(dev *os.File, lower fuseunion.Lower, opt fuseunion.ServeOptions, how *Serve) error {
	// Modes are made as they are asked for, not one call later.
	unix.Umask(0)
	u, err := fuseunion.OpenUnion(lower, how.Upper, how.Work, how.options())
	if err != nil {
		return memoryHint(fmt.Errorf("open writable layer: %w", err))
	}
	if err := fuseunion.ServeUnion(context.Background(), dev, u, opt); err != nil {
		return fmt.Errorf("serve writable layer: %w", err)
	}
	return u.Close()
}

// memoryHint adds what to do where the store has no room for a writable layer.
func memoryHint(err error) error {
	if hint := cure.WritableLayer(err); hint != "" {
		return &hintError{err, hint}
	}
	return err
}

// startUnion starts the union stage of a container with a writable layer of ours.
func (c *container) startUnion() (err error) {
	lower := c.Image
	if lower == nil {
		lower = c.RootDir
	}
	c.union, err = c.startHelper(handoff.Union, KindTree, lower)
	return err
}

// serveUnion passes the mounted FUSE device on to the union stage, which is started
// now if it was not certain before.
func (s *startup) serveUnion(e event) error {
	files := e.msg.Files
	if len(files) == 0 {
		dev, mount, err := mountFuse(fuseunion.MountOptions{Writable: true})
		if err != nil {
			return err
		}
		files = []*os.File{dev, mount}
		if err := s.init.conn.Send(stage.KindImage, nil, mount); err != nil {
			return err
		}
	}
	if len(files) != 2 {
		return fmt.Errorf("init: got %d files for the union", len(files))
	}
	// With the device here the server would not end with the container.
	defer files[0].Close()
	wishes, err := s.list(files[1])
	if err != nil {
		return err
	}
	defer wishes.Close()
	how := Serve{Upper: writable(s.handle.Dir())[0], Work: writable(s.handle.Dir())[1], Volatile: s.Volatile, Memory: s.Memory, Emulate: s.Emulates}
	if s.union == nil {
		if err := s.startUnion(); err != nil {
			return err
		}
	}
	return s.union.conn.Send(KindServe, how, files[0], wishes)
}

// list begins to list, through a mount, the directories that its server wishes to have listed, and returns the server's
// end of the way. The mount can not go away before unlist.
func (c *container) list(mount *os.File) (wishes *os.File, err error) {
	if c.listings, wishes, err = fuseunion.Listings(); err != nil {
		return nil, errors.Join(err, mount.Close())
	}
	go func() {
		defer mount.Close()
		_ = fuseunion.ReadListings(mount, c.listings) // nobody depends on it
	}()
	return wishes, nil
}

// unlist ends what list began.
func (c *container) unlist() {
	if c.listings != nil {
		c.listings.Close()
	}
}

// unionTime bounds the wait for an image server that writes out what the kernel
// still has of a container that has ended.
const unionTime = 30 * time.Second

// flushUnion waits until the union's mount is gone and the server with it: what
// processes mapped and wrote is sent to it until then. A layer that is to be removed
// need not be whole.
func (c *container) flushUnion() {
	if c.union == nil || c.handle.Storage != string(stage.StorageFuse) || c.handle.Record.Remove {
		return
	}
	select {
	case <-c.union.done:
	case <-time.After(unionTime):
	}
}

// parks tells whether a writable layer is parked: a union's has nothing but files of the
// user, and a copy is the whole image, whose files would all have to be changed.
func parks(storage string) bool {
	return storage != string(stage.StorageFuse) && storage != string(stage.StorageCopy)
}

// parkStorage parks the writable layer of a container that has ended.
func parkStorage(dir, storage string) error {
	if !parks(storage) {
		return nil
	}
	return park(dir)
}

// unparkStorage makes the writable layer of a container that has been there
// before what it was when it ended.
func unparkStorage(dir, storage string) error {
	if !parks(storage) {
		return nil
	}
	return unpark(dir)
}
