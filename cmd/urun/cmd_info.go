package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/userns"
)

// InfoCmd is urun info.
type InfoCmd struct{}

// Run prints what this machine allows.
func (InfoCmd) Run(app *App) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	row := func(key string, value any) { fmt.Fprintf(app.Stdout, "%-16s %v\n", key+":", value) }
	row("version", version)
	row("kernel", unix.ByteSliceToString(uts.Release[:]))
	row("root", app.Root)
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
	}
	for _, dev := range []string{"/dev/fuse", "/dev/net/tun"} {
		row(dev, access(dev))
	}
	row("image layers", "served by FUSE, writable layer by overlayfs")
	row("network", "slirp: user-mode TCP/IP on a TUN device")
	support := cgdelegate.Probe(context.Background())
	row("cgroups", support.Reason)
	if len(support.Controllers) > 0 {
		row("controllers", strings.Join(support.Controllers, " "))
	}
	return nil
}

func access(dev string) string {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	f.Close()
	return "usable"
}
