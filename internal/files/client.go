package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urun-dev/urun/internal/archive"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/unpacked"
)

// Container is access to the files of one container. Its methods are for one
// goroutine.
type Container struct {
	conn  *handoff.Conn
	close func() error
}

// Running opens the files of a container that runs. Its directory is dir; root
// tells that uid and gid 0 exist inside, chroot that the container is a directory and no more.
func Running(dir string, init state.Process, root, chroot bool) (*Container, error) {
	pidfd, err := init.Open()
	if err != nil {
		return nil, err
	}
	if pidfd == nil {
		return nil, errors.New("the container has just ended")
	}
	defer pidfd.Close()
	s, err := monitor.Spawn(dir, handoff.Files)
	if err != nil {
		return nil, err
	}
	c := &Container{conn: s.Conn, close: func() error { return errors.Join(s.Conn.Close(), s.Wait()) }}
	req := enterRequest{Root: root}
	if chroot {
		req.Dir = filepath.Join(dir, unpacked.OwnDir)
	}
	if err := c.ask(kindEnter, req, kindReady, nil, pidfd); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Stopped opens the files of a container that does not run and whose lock is held
// by h. Its record tells as long as the writable layer is not parked, so that
// whoever finds the lock free parks it.
func Stopped(opt holder.Options, h *state.Handle, l Layers) (*Container, error) {
	s, err := holder.Spawn(opt, handoff.Files, nil)
	if err != nil {
		return nil, err
	}
	// In place of the monitor: others see that the lock's owner lives.
	was := h.Monitor
	h.Monitor, err = state.ProcessOf(os.Getpid())
	if err == nil {
		h.Unparked = true
		err = h.Save()
	}
	if err != nil {
		return nil, errors.Join(err, s.Conn.Close(), s.Wait())
	}
	c := &Container{conn: s.Conn}
	c.close = func() error {
		err := c.ask(kindClose, nil, kindDone, nil)
		if err == nil {
			h.Unparked, h.Monitor = false, was
			err = h.Save()
		}
		return errors.Join(err, s.Conn.Close(), s.Wait())
	}
	if err := c.ask(kindMount, l, kindReady, nil, h.File()); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// Close ends the access.
func (c *Container) Close() error { return c.close() }

func (c *Container) ask(kind string, req any, want string, into any, files ...*os.File) error {
	if err := c.conn.Send(kind, req, files...); err != nil {
		return err
	}
	return answer(c.conn, want, into)
}

// Stat is archive.Root.Stat inside.
func (c *Container) Stat(path string, follow bool) (info archive.Info, err error) {
	err = c.ask(kindStat, statRequest{path, follow}, kindDone, &info)
	return info, err
}

// Mkdir is archive.Root.Mkdir inside, owned by root.
func (c *Container) Mkdir(path string) error { return c.ask(kindMkdir, path, kindDone, nil) }

// Write is archive.Root.Write inside.
func (c *Container) Write(w io.Writer, path string, opt archive.WriteOptions) error {
	return c.stream(w, kindWrite, writeRequest{Path: path, Options: opt})
}

// Export writes the container's whole file system, but nothing that is mounted in
// it, as a tar stream.
func (c *Container) Export(w io.Writer) error {
	return c.stream(w, kindWrite, writeRequest{Path: "/", Bare: true, Options: archive.WriteOptions{Name: "."}})
}

// Layer writes what differs from the image as a layer, a tar stream with whiteouts.
// The owners are those inside.
func (c *Container) Layer(w io.Writer, l Layers) error { return c.stream(w, kindLayer, l) }

// stream asks for a tar stream and copies it to w.
func (c *Container) stream(w io.Writer, kind string, req any) error {
	r, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	defer r.Close()
	err = c.conn.Send(kind, req, theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	r.Close() // the stage is not to wait for a reader that has failed
	if aerr := answer(c.conn, kindDone, nil); err == nil {
		err = aerr
	}
	return err
}

// Extract is archive.Root.Extract inside.
func (c *Container) Extract(stream io.Reader, dir string, opt archive.ExtractOptions) error {
	theirs, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	defer w.Close()
	err = c.conn.Send(kindExtract, extractRequest{dir, opt}, theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	_, err = io.Copy(w, stream)
	w.Close()
	// What the stage says explains why it did not read on.
	if aerr := answer(c.conn, kindDone, nil); aerr != nil {
		return aerr
	}
	return err
}

// Changes lists what differs from the image, by path.
func (c *Container) Changes(l Layers) ([]Change, error) {
	var all []Change
	err := c.ask(kindChanges, l, kindDone, &all)
	return all, err
}
