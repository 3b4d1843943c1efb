package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/files"
	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

// CommitCmd is urun commit.
type CommitCmd struct {
	Author    string   `short:"a" placeholder:"NAME" help:"Who made the image."`
	Message   string   `short:"m" placeholder:"TEXT" help:"Comment for the image's history."`
	Change    []string `short:"c" sep:"none" placeholder:"INSTRUCTION" help:"Dockerfile instruction to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR."`
	Pause     bool     `short:"p" help:"Pause the container meanwhile, so that nothing changes while it is read."`
	Quiet     bool     `short:"q" help:"Say nothing but the image's id."`
	IIDFile   string   `name:"iidfile" placeholder:"FILE" help:"Write the image's id to a file."`
	Container string   `arg:""`
	Image     string   `arg:"" optional:"" help:"Name of the image."`
}

// Run makes an image of a container: its own image and a layer of what it has
// changed, but not what is in its volumes. It prints the image's id.
func (c *CommitCmd) Run(app *App) (err error) {
	f, err := app.openFiles(c.Container)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	layers, err := app.layers(f.st, f.rec)
	if err != nil {
		return err
	}
	if layers.LowerDir != "" {
		return &hintError{
			fmt.Errorf("commit: container %s runs in the root directory %s, not in an image", f.rec.Name, layers.LowerDir),
			fmt.Sprintf("make an image of all of it: urun export %s | urun import - NAME", f.rec.Name),
		}
	}
	store, base, release, err := app.baseOf(f.rec)
	if err != nil {
		return err
	}
	defer release()
	opt, err := c.options(app, f, base)
	if err != nil {
		return err
	}
	thaw, err := c.pause(f.rec)
	if err != nil {
		return err
	}
	img, err := commitLayer(f, layers, func(ctx context.Context, r io.Reader) (*image.Image, error) {
		return store.Commit(ctx, base, r, opt)
	})
	if err = errors.Join(err, thaw()); err != nil {
		return err
	}
	if c.IIDFile != "" {
		if err := os.WriteFile(c.IIDFile, []byte(img.ID), 0o644); err != nil {
			return fmt.Errorf("--iidfile: %w", err)
		}
	}
	app.tell(containerEvent("commit", f.rec, "imageID", img.ID.String()))
	_, err = fmt.Fprintln(app.Stdout, img.ID)
	return err
}

// baseOf is the image that a container was made of, held until release is called.
func (a *App) baseOf(rec *state.Record) (store *image.Store, base *image.Image, release func(), err error) {
	if store, err = a.Store(); err != nil {
		return nil, nil, nil, err
	}
	if base, err = store.Resolve(rec.ImageID); err == nil {
		release, err = store.Hold(base)
	}
	if errors.Is(err, image.ErrNotFound) {
		err = &hintError{fmt.Errorf("the image of container %s is not in the store: %w", rec.Name, err), "urun pull " + rec.Image}
	}
	return store, base, release, err
}

// commitLayer has an image made of what a container has changed.
func commitLayer(f *containerFiles, l files.Layers, commit func(context.Context, io.Reader) (*image.Image, error)) (*image.Image, error) {
	ctx, stop := interruptible()
	defer stop()
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := f.Layer(w, l)
		w.CloseWithError(err) // EOF if nil
		written <- err
	}()
	img, err := commit(ctx, r)
	r.CloseWithError(err)
	// An error of the writer is what the reader got; one of the reader ends the writer.
	if werr := <-written; err == nil {
		err = werr
	}
	return img, interrupted(ctx, err)
}

// pause freezes a container that runs, if that is wanted. What it returns lets it go on.
func (c *CommitCmd) pause(rec *state.Record) (thaw func() error, err error) {
	if !c.Pause || !isUp(rec) || shownStatus(rec) == state.Paused {
		return func() error { return nil }, nil
	}
	scope, err := scopeOf(rec)
	if err != nil {
		return nil, err
	}
	thaw = func() error { return scope.Thaw(context.Background()) }
	if err := scope.Freeze(context.Background()); err != nil {
		return nil, errors.Join(fmt.Errorf("pause container %s: %w", rec.Name, err), thaw())
	}
	return thaw, nil
}

func (c *CommitCmd) options(app *App, f *containerFiles, base *image.Image) (image.CommitOptions, error) {
	p, err := launch.Load(f.st, f.rec, executable(), app.stateRoot(), app.Debug)
	if err != nil {
		return image.CommitOptions{}, err
	}
	ownUser := p.Container.Namespaces.User.Mode == userns.ModeKeepID
	return image.CommitOptions{
		Name: c.Image, Changes: c.Change, Author: c.Author, Message: c.Message,
		Config: committedConfig(base.Config.Config, f.rec, p.Container.Spec, ownUser), CreatedBy: strings.Join(f.rec.Command, " "),
	}, nil
}

// committedConfig is the config of a container's image with what the container was
// given beside it: a container of the new image runs as this one did. With ownUser
// it ran as its owner (keep-id), who is nobody elsewhere.
func committedConfig(c ocispec.ImageConfig, rec *state.Record, s *specs.Spec, ownUser bool) ocispec.ImageConfig {
	n := len(c.Entrypoint)
	switch {
	case slices.Equal(rec.Command, slices.Concat(c.Entrypoint, c.Cmd)):
	case len(rec.Command) >= n && slices.Equal(rec.Command[:n], c.Entrypoint):
		c.Cmd = slices.Clone(rec.Command[n:])
	default:
		c.Entrypoint, c.Cmd = nil, slices.Clone(rec.Command)
	}
	if p := s.Process; p != nil {
		env := slices.Clone(c.Env)
		for _, e := range p.Env {
			// These urun sets by itself, anew for each container.
			if name, value, _ := strings.Cut(e, "="); !slices.Contains([]string{"HOME", "HOSTNAME", "TERM", "container"}, name) {
				env = image.SetEnv(env, name, value)
			}
		}
		c.Env = env
		if path.Clean("/"+c.WorkingDir) != path.Clean("/"+p.Cwd) {
			c.WorkingDir = p.Cwd
		}
		if c.User == "" && (p.User.UID != 0 || p.User.GID != 0) && !ownUser {
			c.User = fmt.Sprintf("%d:%d", p.User.UID, p.User.GID)
		}
	}
	if rec.StopSignal != 0 && rec.StopSignal != int(unix.SIGTERM) {
		c.StopSignal = signalName(rec.StopSignal)
	}
	if len(rec.Labels) > 0 {
		c.Labels = rec.Labels
	}
	ports := map[string]struct{}{}
	for p := range c.ExposedPorts {
		ports[p] = struct{}{}
	}
	for _, p := range rec.Ports {
		ports[portName(p)] = struct{}{}
	}
	if len(ports) > 0 {
		c.ExposedPorts = ports
	}
	return c
}
