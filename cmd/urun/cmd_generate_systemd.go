package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/state"
)

// GenerateSystemdCmd makes a unit of systemd.
type GenerateSystemdCmd struct {
	Files         bool   `short:"f" help:"Write NAME to ~/.config/systemd/user instead of printing the unit."`
	New           bool   `help:"Make a new container at each start, by the command line that made this one."`
	Name          bool   `short:"n" help:"Accepted for scripts written for podman: the unit always has the container's name."`
	RestartPolicy string `default:"on-failure" enum:"no,on-success,on-failure,on-abnormal,on-watchdog,on-abort,always" placeholder:"POLICY" help:"When systemd starts the container again: no, on-success, on-failure, on-abnormal, on-abort or always."`
	Time          *int   `short:"t" aliases:"stop-timeout" placeholder:"SECONDS" help:"Time from the stop signal to SIGKILL, if not the container's own."`
	Prefix        string `name:"container-prefix" default:"container" help:"What the unit's name begins with."`
	Separator     string `default:"-" help:"What stands between that and the container's name."`
	NoHeader      bool   `help:"Leave out the comment at the top."`
	Container     string `arg:""`
}

// unit is what a unit is made of.
type unit struct {
	file, name string
	header     bool
	restart    string
	seconds    int    // to stop in; negative: for ever
	dir        string // to start in; empty: it does not matter
	urun       []string
	start      []string // behind that
	stop       []string
	clean      []string // when it has stopped, however; nil for nothing
}

// Run prints the unit, or writes it and says where.
func (c *GenerateSystemdCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	rec, err := st.Find(c.Container)
	if err != nil {
		return err
	}
	u := &unit{
		file: c.Prefix + c.Separator + rec.Name + ".service", name: rec.Name, header: !c.NoHeader, restart: c.RestartPolicy,
		seconds: int(rec.StopTimeout.Seconds()), urun: []string{executable()},
	}
	if app.State != "" {
		u.urun = append(u.urun, "--root", app.Root, "--state", app.State)
	} else if app.stateRoot() != defaultRoot() {
		u.urun = append(u.urun, "--root", app.stateRoot())
	}
	if c.Time != nil {
		u.seconds = *c.Time
	}
	u.stop = []string{"stop", "-t", fmt.Sprint(u.seconds), rec.Name}
	u.start = []string{"start", "--attach", rec.Name}
	if c.New {
		if err := c.runAgain(app, st, rec, u); err != nil {
			return err
		}
	}
	if c.Files {
		return u.write(app)
	}
	_, err = fmt.Fprint(app.Stdout, u.text())
	return err
}

// ownWay are flags of run that a unit has its own way for.
var ownWay = []string{"detach", "rm", "replace", "name", "restart", "cidfile", "sig-proxy", "interactive", "tty"}

// runAgain makes the unit start a new container each time, by the command line that
// made this one: in the foreground, and in the place of what a crash has left.
func (c *GenerateSystemdCmd) runAgain(app *App, st *state.Store, rec *state.Record, u *unit) error {
	p, err := launch.Load(st, rec, executable(), app.stateRoot(), app.Debug)
	if err != nil {
		return err
	}
	line := p.Container.CreateCommand
	if len(line) < 2 {
		return &hintError{fmt.Errorf("generate systemd: it is not known what made container %s", rec.Name), "leave out --new"}
	}
	parser, err := newParser(grammar(line[1:]), io.Discard, io.Discard, func(int) {})
	if err != nil {
		return err
	}
	words := &completion{node: parser.Model.Node}
	words.walk(line[1:])
	if words.node.Name != "run" && words.node.Name != "create" {
		return &hintError{fmt.Errorf("generate systemd: container %s was made by urun %s", rec.Name, commandPath(words.node)), "leave out --new"}
	}
	u.start = []string{"run", "--name=" + rec.Name, "--replace", "--rm"}
	for _, f := range words.flags {
		if !slices.Contains(ownWay, f.flag.Name) && slices.Contains(words.node.Flags, f.flag) {
			u.start = append(u.start, f.word())
		}
	}
	u.start = append(u.start, words.args...)
	u.clean = []string{"rm", "-f", "-v", rec.Name}
	u.dir = p.Container.CreateDir
	return nil
}

// text is the unit. The command stays in the foreground, so that systemd sees the
// container's end and its status; it tells systemd when the container's command runs
// (sd_notify(3)).
func (u *unit) text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if u.header {
		line("# %s", u.file)
		line("# made by urun %s generate systemd", version)
		line("")
	}
	line("[Unit]")
	line("Description=urun container %s", unitEscape(u.name))
	line("Documentation=man:urun-generate-systemd(1)")
	line("")
	line("[Service]")
	line("Type=notify")
	line("NotifyAccess=main")
	if u.dir != "" {
		line("WorkingDirectory=%s", unitEscape(u.dir))
	}
	line("Restart=%s", u.restart)
	// An image may have to be pulled first.
	line("TimeoutStartSec=900")
	if u.seconds < 0 {
		line("TimeoutStopSec=infinity")
	} else {
		line("TimeoutStopSec=%d", u.seconds+stopGrace)
	}
	line("SuccessExitStatus=143 SIGTERM")
	line("ExecStart=%s", u.command(u.start))
	line("ExecStop=-%s", u.command(u.stop))
	if u.clean != nil {
		line("ExecStopPost=-%s", u.command(u.clean))
	}
	line("")
	line("[Install]")
	line("WantedBy=default.target")
	return b.String()
}

// stopGrace is how much longer systemd waits than urun stop does, in seconds.
const stopGrace = 30

func (u *unit) command(args []string) string {
	var words []string
	for _, w := range slices.Concat(u.urun, args) {
		words = append(words, unitWord(w))
	}
	return strings.Join(words, " ")
}

// unitEscape doubles what would be a specifier (systemd.unit(5)).
func unitEscape(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// unitWord writes a word of a command line as systemd reads it back
// (systemd.service(5), "COMMAND LINES").
func unitWord(s string) string {
	s = strings.ReplaceAll(unitEscape(s), "$", "$$")
	if s != "" && !strings.ContainsAny(s, " \t\n\"'\\;") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`).Replace(s) + `"`
}

// write puts the unit where systemd looks for those of a user.
func (u *unit) write(app *App) error {
	config, err := os.UserConfigDir()
	if err != nil {
		return fmt.Errorf("generate systemd: %w", err)
	}
	dir := filepath.Join(config, "systemd", "user")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("generate systemd: %w", err)
	}
	name := filepath.Join(dir, u.file)
	tmp := filepath.Join(dir, "."+u.file+".new")
	if err := os.WriteFile(tmp, []byte(u.text()), 0o644); err != nil {
		return errors.Join(fmt.Errorf("generate systemd: %w", err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, name); err != nil {
		return fmt.Errorf("generate systemd: %w", err)
	}
	_, err = fmt.Fprintln(app.Stdout, name)
	return err
}
