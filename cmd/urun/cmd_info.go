package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

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
