package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/doctor"
	"github.com/urun-dev/urun/userns"
)

// InfoCmd is urun info.
type InfoCmd struct {
	Format string `short:"f" placeholder:"json|TEMPLATE" help:"json, or a Go template, by docker's names: .Containers .ContainersRunning .Images .DockerRootDir .KernelVersion .NCPU .MemTotal and so on."`
}

// Run prints what this machine allows.
func (c InfoCmd) Run(app *App) error {
	if c.Format != "" {
		info, err := app.info()
		if err != nil {
			return err
		}
		return printFormat(app.Stdout, c.Format, *info, []dockerInfo{*info})
	}
	kernel, err := kernelVersion()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(app.Stdout)
	row := func(key string, value any) { fmt.Fprintf(out, "%-16s %v\n", key+":", value) }
	row("version", version)
	row("kernel", kernel)
	row("root", app.Root)
	if info, err := app.info(); err != nil {
		row("store", err)
	} else {
		row("containers", fmt.Sprintf("%d: %d running, %d stopped", info.Containers, info.ContainersRunning+info.ContainersPaused, info.ContainersStopped))
		row("images", info.Images)
	}
	me := userns.Current()
	row("user", me)
	m, err := userns.Plan(userns.Request{}, me)
	if err != nil {
		row("id map", err)
	} else {
		row("id map", m)
		if m.Note != "" {
			row("", m.Note)
		}
		if m.Single() && m.Contains(0) {
			row("other ids", "emulated in containers: packages install and services run, but the kernel tells no users apart (--root-emulation)")
		}
	}
	for _, dev := range []string{"/dev/fuse", "/dev/net/tun"} {
		row(dev, access(dev))
	}
	o, err := doctor.Observe(context.Background(), executable(), app.stateRoot(), app.Root)
	if err != nil {
		return err
	}
	row("user namespace", doctor.UserNamespace(o).Detail)
	row("image layers", doctor.ImageLayers(o).Detail)
	row("writable layer", doctor.WritableLayer(o).Detail)
	showHolders(app, row)
	row("network", "slirp: "+networkDriver(app))
	support := cgdelegate.Probe(context.Background())
	row("cgroups", support.Reason)
	if len(support.Controllers) > 0 {
		row("controllers", strings.Join(support.Controllers, " "))
	}
	showManners(row)
	return out.Flush()
}

// networkDriver says what would carry a container's traffic, by trying it.
func networkDriver(app *App) string {
	ctx, cancel := context.WithTimeout(context.Background(), doctorTime)
	defer cancel()
	o, err := doctor.Observe(ctx, executable(), app.stateRoot(), app.Root)
	if err != nil {
		return err.Error()
	}
	return doctor.Network(o).Detail
}

func access(dev string) string {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	f.Close()
	return "usable"
}
