package main

import (
	_ "embed"
	"fmt"
)

// CompletionCmd prints completion scripts.
type CompletionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// The scripts only ask this binary (complete.go): they never need to change with it.
var (
	//go:embed completion/urun.bash
	bashCompletion string
	//go:embed completion/urun.zsh
	zshCompletion string
	//go:embed completion/urun.fish
	fishCompletion string
)

// Run prints the script, to be sourced or put where the shell looks for it.
func (c *CompletionCmd) Run(app *App) error {
	script := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.Shell]
	_, err := fmt.Fprint(app.Stdout, script)
	return err
}
