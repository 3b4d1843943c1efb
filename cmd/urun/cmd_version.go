package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// VersionCmd is urun version.
type VersionCmd struct {
	Format string `short:"f" placeholder:"json|TEMPLATE" help:"json, or a Go template over .Client and .Server, which are the same here, each with .Version .GitCommit .GoVersion .Os .Arch .Kernel."`
}

// versions is what docker version shows. There is no server: what asks for its
// version gets that of the one binary.
type versions struct{ Client, Server versionOf }

type versionOf struct{ Version, GitCommit, GoVersion, Os, Arch, Kernel string }

// Version is the version by podman's path.
func (v versions) Version() string { return v.Client.Version }

// Run prints the version.
func (c VersionCmd) Run(app *App) error {
	if c.Format == "" {
		_, err := fmt.Fprintf(app.Stdout, "urun version %s (%s %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
	v := versionOf{Version: version, GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.GitCommit = s.Value
			}
		}
	}
	var err error
	if v.Kernel, err = kernelVersion(); err != nil {
		return err
	}
	all := versions{v, v}
	return printFormat(app.Stdout, c.Format, all, []versions{all})
}
