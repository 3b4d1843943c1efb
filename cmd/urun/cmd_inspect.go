package main

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/template"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/state"
)

// InspectCmd is urun inspect.
type InspectCmd struct {
	Format     string   `short:"f" help:"A Go template." placeholder:"TEMPLATE"`
	Containers []string `arg:"" name:"container"`
}

// inspected is a container's record together with its spec.
type inspected struct {
	*state.Record
	Spec *specs.Spec `json:"spec"`
}

// Run prints records as a JSON array.
func (i *InspectCmd) Run(app *App) error {
	var recs []inspected
	if err := each(app, i.Containers, func(st *state.Store, rec *state.Record) error {
		spec, err := st.Spec(rec.ID)
		if err != nil {
			return err
		}
		recs = append(recs, inspected{rec, spec})
		return nil
	}); err != nil {
		return err
	}
	if i.Format == "" {
		enc := json.NewEncoder(app.Stdout)
		enc.SetIndent("", "    ")
		return enc.Encode(recs)
	}
	tmpl, err := template.New("format").Funcs(template.FuncMap{"json": toJSON}).Parse(i.Format + "\n")
	if err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	for _, rec := range recs {
		if err := tmpl.Execute(app.Stdout, rec); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
	}
	return nil
}

func toJSON(v any) (string, error) {
	raw, err := json.Marshal(v)
	return string(raw), err
}

// WaitCmd is urun wait.
type WaitCmd struct {
	Containers []string `arg:"" name:"container"`
}

// Run waits and prints exit statuses.
func (w *WaitCmd) Run(app *App) error {
	return each(app, w.Containers, func(st *state.Store, rec *state.Record) error {
		ended, err := awaitExit(st, rec.ID, -1)
		if err != nil {
			return err
		}
		if ended == nil {
			return fmt.Errorf("container %s was removed before its exit status was read", rec.Name)
		}
		_, err = fmt.Fprintln(app.Stdout, ended.ExitCode)
		return err
	})
}

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
		return fmt.Errorf("container %s does not publish port %s", rec.Name, p.Private)
	}
	return nil
}

func hostPort(p state.Port) string {
	return net.JoinHostPort(p.HostIP, strconv.Itoa(int(p.HostPort)))
}
