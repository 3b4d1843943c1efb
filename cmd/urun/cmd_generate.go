package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"github.com/alecthomas/kong"
)

// GenerateCmd groups the commands that make files for other programs.
type GenerateCmd struct {
	Systemd GenerateSystemdCmd `cmd:"" help:"Make a unit that runs a container at login."`
	Man     GenerateManCmd     `cmd:"" help:"Write the man pages."`
}

// GenerateManCmd writes man pages.
type GenerateManCmd struct {
	Dir string `arg:"" name:"dir" help:"Directory, such as /usr/local/share/man/man1; it is made."`
}

// Run writes urun.1 and a page for each command.
func (c *GenerateManCmd) Run(app *App) error {
	parser, err := newParser(reflect.New(reflect.TypeFor[cli]()), app.Stdout, app.Stderr, func(int) {})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return fmt.Errorf("man pages: %w", err)
	}
	return kong.Visit(parser.Model.Node, func(v kong.Visitable, next kong.Next) error {
		n, ok := v.(*kong.Node)
		if !ok || n.Hidden {
			return nil
		}
		name, page := manPage(n)
		if err := os.WriteFile(filepath.Join(c.Dir, name+".1"), []byte(page), 0o644); err != nil {
			return fmt.Errorf("man pages: %w", err)
		}
		return next(nil)
	})
}
