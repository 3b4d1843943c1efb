package main

import (
	"fmt"
	"strconv"
	"strings"
)

// PortCmd is urun port.
type PortCmd struct {
	Container string `arg:""`
	Private   string `arg:"" optional:"" name:"port" help:"PORT[/PROTOCOL] inside."`
}

// Run lists published ports.
func (p *PortCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	rec, err := st.Find(p.Container)
	if err != nil {
		return err
	}
	want, proto, _ := strings.Cut(p.Private, "/")
	if proto == "" {
		proto = "tcp"
	}
	found := false
	for _, port := range rec.Ports {
		if p.Private == "" {
			fmt.Fprintf(app.Stdout, "%d/%s -> %s\n", port.ContainerPort, port.Protocol, hostPort(port))
			continue
		}
		if want == strconv.Itoa(int(port.ContainerPort)) && proto == port.Protocol {
			found = true
			fmt.Fprintln(app.Stdout, hostPort(port))
		}
	}
	if p.Private != "" && !found {
		return &hintError{fmt.Errorf("container %s does not publish port %s", rec.Name, p.Private), "urun port " + rec.Name + " lists those that it does"}
	}
	return nil
}
