package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/volume"
)

// InspectCmd is urun inspect.
type InspectCmd struct {
	Format string   `short:"f" placeholder:"json|TEMPLATE" help:"A Go template for each, instead of JSON."`
	Size   bool     `short:"s" help:"Tell how much containers have written."`
	Type   string   `placeholder:"TYPE" enum:"container,image,network,volume," default:"" help:"Only things of this type: container, image, network or volume."`
	Names  []string `arg:"" name:"name" help:"Containers, images, networks or volumes."`
}

// errNoObject says that a name stands for nothing at all.
var errNoObject = errors.New("no such object")

// Run prints what there is as a JSON array and tells of what there is not.
func (i *InspectCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	found := []any{}
	var errs []error
	for _, name := range i.Names {
		v, err := i.find(app, st, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, v)
	}
	return errors.Join(append([]error{printInspected(app, i.Format, found)}, errs...)...)
}

// find looks a name up among containers, images, networks and volumes, in this order.
func (i *InspectCmd) find(app *App, st *state.Store, name string) (any, error) {
	finders := []struct {
		kind string
		find func() (any, error)
		none error
	}{
		{"container", func() (any, error) { return i.container(app, st, name) }, state.ErrNotFound},
		{"image", func() (any, error) { return app.inspectImage(name) }, image.ErrNotFound},
		{"network", func() (any, error) { return app.inspectNetwork(name) }, network.ErrNotFound},
		{"volume", func() (any, error) { return app.inspectVolume(name) }, volume.ErrNotFound},
	}
	for _, f := range finders {
		if i.Type != "" && i.Type != f.kind {
			continue
		}
		v, err := f.find()
		if err == nil || i.Type != "" || !errors.Is(err, f.none) {
			return v, err
		}
	}
	return nil, &hintError{
		fmt.Errorf("%w: %s", errNoObject, name),
		"urun ps -a, urun images, urun network ls and urun volume ls list what there is",
	}
}

func (i *InspectCmd) container(app *App, st *state.Store, name string) (any, error) {
	rec, err := st.Find(name)
	if err != nil {
		return nil, err
	}
	c, err := inspectContainer(st, rec)
	if err != nil || !i.Size {
		return c, err
	}
	sizes, err := app.containerSizes(st, []*state.Record{rec})
	if err != nil {
		return nil, err
	}
	size := sizes[rec.ID]
	root := size.Written + size.Image
	c.SizeRw, c.SizeRootFs = &size.Written, &root
	return c, nil
}

// printInspected prints a JSON array, or a template for each.
func printInspected(app *App, format string, found []any) error {
	if format == "" || format == "json" {
		enc := json.NewEncoder(app.Stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "    ")
		return enc.Encode(found)
	}
	t, err := parseTemplate(format)
	if err != nil {
		return err
	}
	for _, v := range found {
		// By the names of the Go fields, and else by those of the JSON, which
		// differ here and there (.Id).
		var out bytes.Buffer
		if err := t.Execute(&out, v); err != nil {
			out.Reset()
			generic, gerr := asMap(v)
			if gerr != nil {
				return gerr
			}
			if gerr := t.Option("missingkey=error").Execute(&out, generic); gerr != nil {
				return templateError(err)
			}
		}
		if _, err := fmt.Fprintln(app.Stdout, out.String()); err != nil {
			return err
		}
	}
	return nil
}

func asMap(v any) (m map[string]any, err error) {
	raw, err := json.Marshal(v)
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber() // large numbers are not to become 1.2e+09
		err = dec.Decode(&m)
	}
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return m, nil
}
