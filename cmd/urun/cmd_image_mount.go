package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/imagemount"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/userns"
)

// ImageMountCmd shows an image's files on a directory of the host.
type ImageMountCmd struct {
	Format  string   `enum:"text,json" default:"text" help:"Of the list of mounts: text, or json, an object a line."`
	Image   string   `arg:"" optional:"" help:"Name or id; without any, list what is mounted."`
	Dir     string   `arg:"" optional:"" help:"Directory to mount on."`
	Command []string `arg:"" optional:"" help:"After --: run this, and show the image to it alone. Needs no fusermount3."`
}

// Help is shown by --help.
func (c *ImageMountCmd) Help() string {
	return `The image is mounted read-only, for you alone, until "urun image umount". That takes fusermount3 (Debian's package fuse3), as no user may
mount by himself. With a command after "--" it does not: the command runs as root of a user namespace and sees the image, nobody else does.`
}

// Run mounts, or lists.
func (c *ImageMountCmd) Run(app *App) (err error) {
	switch {
	case c.Image == "":
		return c.list(app)
	case c.Dir == "":
		return &hintError{errors.New("image mount: no directory to mount on"), "urun image mount IMAGE DIR"}
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	if info, err := os.Stat(dir); err != nil {
		return deadMountHint(err, dir)
	} else if !info.IsDir() {
		return fmt.Errorf("%s: %w", dir, unix.ENOTDIR)
	}
	o, err := app.openImage(c.Image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	img := mountable(o.img)
	if len(c.Command) > 0 {
		return runMounted(img, imagemount.Command{Dir: dir, Args: c.Command, Env: os.Environ()})
	}
	err = imagemount.Attach(executable(), img, dir, o.held)
	if errors.Is(err, fuseunion.ErrNoFusermount) {
		return &hintError{err, "install fuse3, or run a command that sees the image: urun image mount " + c.Image + " " + c.Dir + " -- COMMAND"}
	}
	if errors.Is(err, os.ErrNotExist) {
		return &hintError{err, "is there a /dev/fuse?"}
	}
	return err
}

func mountable(img *image.Image) imagemount.Image {
	m := imagemount.Image{ID: img.ID.Encoded(), Tree: img.Tree}
	for _, l := range img.Layers {
		m.Data = append(m.Data, l.Data)
	}
	return m
}

func runMounted(img imagemount.Image, c imagemount.Command) error {
	m, err := userns.Plan(userns.Request{}, userns.Current())
	if err != nil {
		return err
	}
	err = imagemount.Run(executable(), img, c, m, launch.ServeOptions(m))
	var exit *imagemount.ExitError
	if errors.As(err, &exit) && exit.Err == nil {
		return exitStatus(exit.Code)
	}
	return err
}

// deadMountHint says what to do about a mount whose server was killed.
func deadMountHint(err error, dir string) error {
	if errors.Is(err, unix.ENOTCONN) {
		return &hintError{err, "the server of an image mounted here is gone: urun image umount " + dir}
	}
	return err
}

func (c *ImageMountCmd) list(app *App) error {
	mounts, err := imagemount.List()
	if err != nil {
		return err
	}
	store, err := app.Store()
	if err != nil {
		return err
	}
	images, err := store.List()
	if err != nil {
		return err
	}
	names := make(map[string]string)
	for _, img := range images {
		names[img.ID.Encoded()] = strings.Join(img.Names, " ")
	}
	w := tabwriter.NewWriter(app.Stdout, 0, 8, 3, ' ', 0)
	for _, m := range mounts {
		if c.Format == "json" {
			if err := jsonLine(app.Stdout, struct{ ID, Name, Dir string }{m.ID, names[m.ID], m.Dir}); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%.12s\t%s\t%s\n", m.ID, names[m.ID], printable(m.Dir))
	}
	return w.Flush()
}

// ImageUmountCmd ends what image mount has begun.
type ImageUmountCmd struct {
	All   bool     `short:"a" help:"All images that are mounted."`
	Force bool     `short:"f" help:"Also what is in use: it goes out of sight at once, and ends with its last user."`
	Dirs  []string `arg:"" optional:"" name:"dir" help:"Directories, or names or ids of images."`
}

// Run goes on after a mount that cannot be taken away, and fails in the end.
func (c *ImageUmountCmd) Run(app *App) error {
	if len(c.Dirs) == 0 && !c.All {
		return &hintError{errors.New("image umount: nothing to unmount"), "urun image umount DIR, or --all"}
	}
	mounts, err := imagemount.List()
	if err != nil {
		return err
	}
	var targets []string
	if c.All {
		for _, m := range mounts {
			targets = append(targets, m.Dir)
		}
	}
	var errs []error
	for _, arg := range c.Dirs {
		dirs, err := mountsOf(app, mounts, arg)
		targets, errs = append(targets, dirs...), append(errs, err)
	}
	for _, dir := range targets {
		err := imagemount.Detach(dir, c.Force)
		if errors.Is(err, unix.EBUSY) {
			err = &hintError{err, "something in it is open, or somebody's working directory: urun image umount -f " + dir}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mountsOf finds the mounts that an argument means: one on that directory, else all of that image.
func mountsOf(app *App, mounts []imagemount.Mount, arg string) ([]string, error) {
	dir, err := filepath.Abs(arg)
	if err != nil {
		return nil, err
	}
	// A mount is known by its real path; the last component may be dead and is not touched.
	if real, err := filepath.EvalSymlinks(filepath.Dir(dir)); err == nil {
		dir = filepath.Join(real, filepath.Base(dir))
	}
	for _, m := range mounts {
		if m.Dir == dir {
			return []string{dir}, nil
		}
	}
	var dirs []string
	if store, err := app.Store(); err == nil {
		if img, err := store.Resolve(arg); err == nil {
			for _, m := range mounts {
				if m.ID == img.ID.Encoded() {
					dirs = append(dirs, m.Dir)
				}
			}
		}
	}
	if len(dirs) == 0 {
		return nil, &hintError{fmt.Errorf("%s: no image is mounted there", arg), "urun image mount lists those that are"}
	}
	return dirs, nil
}
