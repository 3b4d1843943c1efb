package main

import (
	"fmt"
	"runtime"
)

// VersionCmd is urun version.
type VersionCmd struct{}

// Run prints the version.
func (VersionCmd) Run(app *App) error {
	_, err := fmt.Fprintf(app.Stdout, "urun version %s (%s %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
