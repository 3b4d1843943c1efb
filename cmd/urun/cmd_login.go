package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/urun-dev/urun/internal/image"
)

// LoginCmd logs in to a registry.
type LoginCmd struct {
	Username      string `short:"u" help:"User name."`
	Password      string `short:"p" xor:"password" help:"Password. Other users of the machine can see it; --password-stdin is better."`
	PasswordStdin bool   `name:"password-stdin" xor:"password" help:"Read the password from standard input."`
	TLSVerify     bool   `name:"tls-verify" default:"true" negatable:"" help:"Want https and a valid certificate; on by default. Loopback hosts may speak http."`
	Server        string `arg:"" optional:"" name:"registry" help:"Registry; docker.io by default."`
}

// Run asks for what was not given.
func (c *LoginCmd) Run(app *App) error {
	cred, err := c.credentials(app)
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	ctx, stop := interruptible()
	defer stop()
	_, where, err := image.Login(ctx, c.Server, cred, c.TLSVerify)
	if err != nil {
		return interrupted(ctx, err)
	}
	app.Log.Debug("credentials kept", "where", where)
	_, err = fmt.Fprintln(app.Stdout, "Login Succeeded")
	return err
}

func (c *LoginCmd) credentials(app *App) (image.Credentials, error) {
	cred := image.Credentials{Username: c.Username, Password: c.Password}
	if c.PasswordStdin {
		if cred.Username == "" {
			return cred, errors.New("--password-stdin wants --username")
		}
		text, err := io.ReadAll(io.LimitReader(app.Stdin, 1<<20))
		if err != nil {
			return cred, err
		}
		cred.Password = strings.TrimRight(string(text), "\r\n")
	}
	in := bufio.NewReader(app.Stdin)
	if cred.Username == "" {
		fmt.Fprint(app.Stderr, "Username: ")
		line, err := in.ReadString('\n')
		if err != nil && (err != io.EOF || line == "") {
			return cred, fmt.Errorf("read user name: %w", err)
		}
		cred.Username = strings.TrimSpace(line)
	}
	if cred.Password == "" && !c.PasswordStdin {
		password, err := askPassword(app, in)
		if err != nil {
			return cred, err
		}
		cred.Password = password
	}
	if cred.Username == "" || cred.Password == "" {
		return cred, errors.New("user name and password must not be empty")
	}
	return cred, nil
}

// askPassword reads a line, without echo from a terminal.
func askPassword(app *App, in *bufio.Reader) (string, error) {
	fmt.Fprint(app.Stderr, "Password: ")
	f, ok := app.Stdin.(*os.File)
	if ok && term.IsTerminal(int(f.Fd())) {
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(app.Stderr)
		return string(text), err
	}
	line, err := in.ReadString('\n')
	if err != nil && (err != io.EOF || line == "") {
		return "", fmt.Errorf("read password: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}
