package main

// The image commands: PullCmd, ImagesCmd, RmiCmd, TagCmd, LoadCmd, SaveCmd, ImportCmd, ImageCmd (with
// ImageInspectCmd and ImagePruneCmd below it), LoginCmd, LogoutCmd.

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urun-dev/urun/internal/image"
)

// PullCmd brings images into the store.
type PullCmd struct {
	Quiet     bool     `short:"q" xor:"output" help:"Print the image's id alone."`
	JSON      bool     `name:"json" xor:"output" help:"Print progress as JSON, one event a line."`
	Platform  string   `placeholder:"OS/ARCH[/VARIANT]" help:"Platform of the image, if not this machine's."`
	TLSVerify bool     `name:"tls-verify" default:"true" negatable:"" help:"Want https and a valid certificate; on by default. Loopback hosts may speak http."`
	Policy    string   `enum:"always,missing,never" default:"always" aliases:"pull" help:"When to ask the source: always, missing (only if the name is not here) or never."`
	Creds     string   `placeholder:"USER:PASSWORD" help:"Credentials, instead of those kept by urun login."`
	Image     []string `arg:"" name:"image" help:"NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]."`
}

// Run prints the id of each image.
func (c *PullCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	opt := image.PullOptions{Platform: c.Platform, Insecure: !c.TLSVerify, Policy: image.Policy(c.Policy)}
	if c.Creds != "" {
		user, password, ok := strings.Cut(c.Creds, ":")
		if !ok || user == "" {
			return errors.New("--creds: want USER:PASSWORD")
		}
		opt.Auth = &image.Credentials{Username: user, Password: password}
	}
	ctx, stop := interruptible()
	defer stop()
	for _, ref := range c.Image {
		if err := c.pull(ctx, app, store, ref, opt); err != nil {
			return interrupted(ctx, err)
		}
	}
	return nil
}

func (c *PullCmd) pull(ctx context.Context, app *App, store *image.Store, ref string, opt image.PullOptions) error {
	show := newProgress(app, c.Quiet, c.JSON)
	opt.Progress = show.event
	img, err := store.Pull(ctx, ref, opt)
	show.end()
	if err != nil {
		return err
	}
	app.tell(imageEvent("pull", ref, ref))
	if c.JSON {
		return nil
	}
	_, err = fmt.Fprintln(app.Stdout, img.ID.Encoded())
	return err
}

// interruptible is a context that ends with ctrl-C, so that work in progress is swept at once.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

// interrupted ends like a shell's command if it was the person who ended it.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return exitStatus(128 + int(syscall.SIGINT))
	}
	return err
}
