package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/docker/go-units"

	"github.com/urun-dev/urun/internal/image"
)

// ImageVerifyCmd checks that the store's images are what they were when they were pulled.
type ImageVerifyCmd struct {
	Repair bool     `help:"Make damaged indexes and trees again, and remove damaged layers, so that the next pull fetches them."`
	Format string   `enum:"text,json" default:"text" help:"text, or json: an object a line for each image."`
	Images []string `arg:"" optional:"" name:"image" help:"Names or ids; without any, all images."`
}

// Run reads the images whole. Its exit status is 1 if there is damage that is not repaired.
func (c *ImageVerifyCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	damaged := false
	err = store.Verify(ctx, c.Images, c.Repair, func(v image.Verified) error {
		damaged = damaged || len(v.Damage) > 0 && !v.Repaired
		if c.Format == "json" {
			return jsonLine(app.Stdout, v)
		}
		return printVerified(app.Stdout, v)
	})
	if err != nil {
		return interrupted(ctx, err)
	}
	if damaged {
		return exitStatus(1)
	}
	return nil
}

// maxDamagedFiles bounds the damaged files that are listed for one layer; the JSON has all.
const maxDamagedFiles = 20

func printVerified(w io.Writer, v image.Verified) error {
	title := "the store's names"
	if v.ID != "" {
		title = strings.TrimSpace(v.ID.Encoded()[:12] + " " + strings.Join(v.Names, " "))
	}
	var b strings.Builder
	switch {
	case len(v.Damage) == 0:
		fmt.Fprintf(&b, "ok       %s: %d layers, %s\n", title, v.Layers, units.HumanSize(float64(v.Bytes)))
	case v.Repaired:
		fmt.Fprintf(&b, "repaired %s:\n", title)
	default:
		fmt.Fprintf(&b, "DAMAGED  %s:\n", title)
	}
	for _, d := range v.Damage {
		fmt.Fprintf(&b, "  %s %s: %s\n", d.Part, d.Path, d.Problem)
		for i, f := range d.Files {
			if i == maxDamagedFiles {
				fmt.Fprintf(&b, "    and %d more files\n", len(d.Files)-i)
				break
			}
			fmt.Fprintf(&b, "    /%s\n", f)
		}
		if d.Repaired != "" {
			fmt.Fprintf(&b, "    %s\n", d.Repaired)
		}
		if d.Cure != "" {
			fmt.Fprintf(&b, "    hint: %s\n", d.Cure)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
