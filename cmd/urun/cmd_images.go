package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/urun-dev/urun/internal/image"
)

// ImagesCmd lists images.
type ImagesCmd struct {
	All     bool     `short:"a" help:"Show all images; there are no hidden ones, so this changes nothing."`
	Quiet   bool     `short:"q" help:"Print ids alone."`
	Digests bool     `help:"Show the digests of the manifests."`
	NoTrunc bool     `name:"no-trunc" help:"Print ids whole."`
	Format  string   `placeholder:"json|table TEMPLATE|TEMPLATE" help:"json, or a Go template over .ID .Repository .Tag .Digest .CreatedSince .CreatedAt .Size."`
	Filter  []string `short:"f" sep:"none" placeholder:"KEY=VALUE" help:"reference=PATTERN, dangling=true|false, label=KEY[=VALUE], before=IMAGE, since=IMAGE."`
	Name    string   `arg:"" optional:"" name:"repository" help:"Only this NAME[:TAG]; * and ? match within a path component."`
}

// imageRow is one line of the list; an image has one for each name.
type imageRow struct {
	ID           string
	Repository   string
	Tag          string
	Digest       string
	CreatedSince string
	CreatedAt    string
	Size         string
}

// Run prints the list.
func (c *ImagesCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	images, listErr := store.List() // one damaged image does not hide the others
	filters := c.Filter
	if c.Name != "" {
		filters = append(slices.Clone(filters), "reference="+c.Name)
	}
	keep, err := imageFilters(store, filters)
	if err != nil {
		return err
	}
	slices.SortStableFunc(images, func(a, b *image.Image) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(string(a.ID), string(b.ID)))
	})
	var rows []imageRow
	for _, img := range images {
		for _, row := range c.rows(img) {
			if keep(img, row) {
				rows = append(rows, row)
			}
		}
	}
	return errors.Join(c.print(app, rows), listErr)
}

func (c *ImagesCmd) print(app *App, rows []imageRow) error {
	if c.Quiet {
		var ids []string
		for _, r := range rows {
			ids = append(ids, r.ID)
		}
		for _, id := range slices.Compact(ids) { // the names of one image are neighbours
			if _, err := fmt.Fprintln(app.Stdout, id); err != nil {
				return err
			}
		}
		return nil
	}
	format := c.Format
	if format == "" || format == "table" {
		columns := []string{"{{.Repository}}", "{{.Tag}}", "{{.ID}}", "{{.CreatedSince}}", "{{.Size}}"}
		if c.Digests {
			columns = slices.Insert(columns, 2, "{{.Digest}}")
		}
		format = "table " + strings.Join(columns, "\t")
	}
	headings := imageRow{"IMAGE ID", "REPOSITORY", "TAG", "DIGEST", "CREATED", "CREATED AT", "SIZE"}
	return printFormat(app.Stdout, format, headings, rows)
}

func (c *ImagesCmd) rows(img *image.Image) []imageRow {
	base := imageRow{
		ID: img.ShortID(), Repository: "<none>", Tag: "<none>", Digest: "<none>",
		CreatedSince: "N/A", CreatedAt: "N/A", Size: units.HumanSizeWithPrecision(float64(img.Size), 3),
	}
	if c.NoTrunc {
		base.ID = img.ID.String()
	}
	if !img.Created.IsZero() {
		base.CreatedSince = units.HumanDuration(time.Since(img.Created)) + " ago"
		base.CreatedAt = img.Created.Local().Format("2006-01-02 15:04:05 -0700 MST")
	}
	digests := make(map[string]string) // by repository
	for _, d := range img.Digests {
		if r, err := image.ParseReference(d); err == nil {
			digests[r.FamiliarName()] = r.Digest.String()
		}
	}
	var rows []imageRow
	for _, n := range img.Names {
		r, err := image.ParseReference(n)
		if err != nil {
			continue // the store wrote it: it parses
		}
		row := base
		row.Repository, row.Tag = r.FamiliarName(), r.Tag
		row.Digest = cmp.Or(digests[row.Repository], "<none>")
		rows = append(rows, row)
	}
	if len(rows) > 0 {
		slices.SortFunc(rows, func(a, b imageRow) int { return strings.Compare(a.Repository+":"+a.Tag, b.Repository+":"+b.Tag) })
		return rows
	}
	for name, d := range digests {
		base.Repository, base.Digest = name, d
		break
	}
	return []imageRow{base}
}

// imageFilters reads the filters: those of one key are alternatives (reference, label: docker's rules), those
// of different keys must all hold.
func imageFilters(store *image.Store, filters []string) (func(*image.Image, imageRow) bool, error) {
	var references []string
	var conds []func(*image.Image) bool
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("filter %q: want KEY=VALUE", f)
		}
		if key == "reference" {
			references = append(references, value)
			continue
		}
		cond, err := imageFilter(store, key, value)
		if err != nil {
			return nil, err
		}
		conds = append(conds, cond)
	}
	return func(img *image.Image, row imageRow) bool {
		for _, cond := range conds {
			if !cond(img) {
				return false
			}
		}
		return len(references) == 0 || slices.ContainsFunc(references, func(p string) bool { return rowMatches(img, row, p) })
	}, nil
}

// rowMatches looks at the name of this line, so that an image's other names are not shown with it.
func rowMatches(img *image.Image, row imageRow, pattern string) bool {
	one := *img
	if row.Tag != "<none>" {
		one.Names, one.Digests = []string{row.Repository + ":" + row.Tag}, nil
	}
	return one.MatchesName(pattern)
}

func imageFilter(store *image.Store, key, value string) (func(*image.Image) bool, error) {
	switch key {
	case "dangling":
		if value != "true" && value != "false" && value != "1" && value != "0" {
			return nil, fmt.Errorf("filter dangling=%s: want true or false", value)
		}
		want := value == "true" || value == "1"
		return func(img *image.Image) bool { return (len(img.Names) == 0) == want }, nil
	case "label":
		k, v, hasValue := strings.Cut(value, "=")
		return func(img *image.Image) bool {
			got, ok := img.Config.Config.Labels[k]
			return ok && (!hasValue || got == v)
		}, nil
	case "before", "since":
		other, err := store.Resolve(value)
		if err != nil {
			return nil, err
		}
		return func(img *image.Image) bool {
			if key == "before" {
				return img.Created.Before(other.Created)
			}
			return img.Created.After(other.Created)
		}, nil
	}
	return nil, &hintError{fmt.Errorf("--filter %s=%s: unknown filter", key, value), "want KEY=VALUE with one of the keys before, dangling, label, reference, since"}
}
