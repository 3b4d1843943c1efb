package main

import (
	"fmt"

	"github.com/urun-dev/urun/internal/image"
)

// LogoutCmd forgets a registry's credentials.
type LogoutCmd struct {
	Server string `arg:"" optional:"" name:"registry" help:"Registry; docker.io by default."`
}

// Run says which credentials went.
func (c *LogoutCmd) Run(app *App) error {
	registry, removed, err := image.Logout(c.Server)
	if err != nil {
		return err
	}
	if !removed {
		_, err = fmt.Fprintln(app.Stdout, "Not logged in to", registry)
		return err
	}
	_, err = fmt.Fprintln(app.Stdout, "Removed login credentials for", registry)
	return err
}
