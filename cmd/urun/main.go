// Command urun runs containers for people who have no root.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/doctor"
	"github.com/urun-dev/urun/internal/files"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/imagemount"
	"github.com/urun-dev/urun/internal/infra/server"
	"github.com/urun-dev/urun/internal/monitor"
	_ "github.com/urun-dev/urun/internal/prefault" // the entry point, and the first init function
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
)

// version is set by the build.
var version = "devel"

// cli is the whole command line.
type cli struct {
	Root  string `help:"Directory of images and containers ($XDG_DATA_HOME/urun)." env:"URUN_ROOT" placeholder:"DIR"`
	State string `help:"Directory of containers, if not beside the images." env:"URUN_STATE" placeholder:"DIR"`
	Debug bool   `help:"Tell on standard error what is done."`

	Linger *time.Duration `help:"How long what containers share stays ready after the last one (5m; 0 in a batch job)." env:"URUN_LINGER" placeholder:"TIME"`

	Run     RunCmd     `cmd:"" group:"containers" help:"Run a command in a new container."`
	Create  CreateCmd  `cmd:"" group:"containers" help:"Make a container without starting it."`
	Start   StartCmd   `cmd:"" group:"containers" help:"Start containers that were made or have ended."`
	Restart RestartCmd `cmd:"" group:"containers" help:"Stop containers and start them again."`
	Exec    ExecCmd    `cmd:"" group:"containers" help:"Run a command in a running container."`
	Attach  AttachCmd  `cmd:"" group:"containers" help:"Connect to a running container's output and input."`
	Rename  RenameCmd  `cmd:"" group:"containers" help:"Give a container another name."`
	Ps      PsCmd      `cmd:"" group:"containers" help:"List containers."`
	Stop    StopCmd    `cmd:"" group:"containers" help:"Stop containers: a signal, then SIGKILL."`
	Kill    KillCmd    `cmd:"" group:"containers" help:"Send a signal to containers."`
	Pause   PauseCmd   `cmd:"" group:"containers" help:"Stop all processes of containers where they are."`
	Unpause UnpauseCmd `cmd:"" group:"containers" help:"Let the processes of paused containers go on."`
	Update  UpdateCmd  `cmd:"" group:"containers" help:"Change limits of containers."`
	Stats   StatsCmd   `cmd:"" group:"containers" help:"Show what containers use of the machine, as it changes."`
	Rm      RmCmd      `cmd:"" group:"containers" help:"Remove containers."`
	Logs    LogsCmd    `cmd:"" group:"containers" help:"Show the output of a detached container."`
	Wait    WaitCmd    `cmd:"" group:"containers" help:"Wait until containers end and print their exit status."`
	Port    PortCmd    `cmd:"" group:"containers" help:"List a container's published ports."`
	Inspect InspectCmd `cmd:"" group:"containers" help:"Show all that is known of containers, images and volumes, as JSON."`

	Top    TopCmd    `cmd:"" group:"containers" help:"List the processes of a container."`
	Cp     CpCmd     `cmd:"" group:"containers" help:"Copy files between a container and the host."`
	Diff   DiffCmd   `cmd:"" group:"containers" help:"List what a container changed of its image."`
	Commit CommitCmd `cmd:"" group:"containers" help:"Make an image of a container and what it has changed."`
	Export ExportCmd `cmd:"" group:"containers" help:"Write a container's file system as a tar."`

	Container ContainerCmd `cmd:"" group:"containers" help:"Work with containers."`

	Pull   PullCmd   `cmd:"" group:"images" help:"Bring an image into the store."`
	Images ImagesCmd `cmd:"" group:"images" help:"List images."`
	Rmi    RmiCmd    `cmd:"" group:"images" help:"Remove images."`
	Tag    TagCmd    `cmd:"" group:"images" help:"Give an image another name."`
	Load   LoadCmd   `cmd:"" group:"images" help:"Load images from an archive."`
	Save   SaveCmd   `cmd:"" group:"images" help:"Save images to an archive."`
	Import ImportCmd `cmd:"" group:"images" help:"Make an image of a root filesystem's tar."`
	Image  ImageCmd  `cmd:"" group:"images" help:"Work with images."`
	Login  LoginCmd  `cmd:"" group:"images" help:"Log in to a registry."`
	Logout LogoutCmd `cmd:"" group:"images" help:"Log out of a registry."`

	Doctor     DoctorCmd     `cmd:"" group:"system" help:"Find out what keeps urun from working here, and what cures it."`
	Volume     VolumeCmd     `cmd:"" group:"system" help:"Work with volumes."`
	Network    NetworkCmd    `cmd:"" group:"system" help:"Work with networks of containers."`
	System     SystemCmd     `cmd:"" group:"system" help:"Work with the store as a whole."`
	Events     EventsCmd     `cmd:"" group:"system" help:"Show what happens, as it does."`
	Generate   GenerateCmd   `cmd:"" group:"system" help:"Make files for other programs: systemd units, man pages."`
	Completion CompletionCmd `cmd:"" group:"system" help:"Print the completion for a shell."`

	Info    InfoCmd    `cmd:"" group:"system" help:"Show what this machine allows and what urun makes of it."`
	Version VersionCmd `cmd:"" group:"system" help:"Show the version."`
}

// App is what every command gets.
type App struct {
	Root           string
	State          string // of containers, if not beside the images; empty: see stateRoot
	Debug          bool
	Linger         time.Duration // of what containers share, after the last one
	Log            *slog.Logger
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

func main() {
	if builtWithCgo {
		os.Exit(report(os.Stderr, &hintError{
			errors.New("this binary was built with cgo, with which it can not work"),
			"build it with: make build, or CGO_ENABLED=0 go build ./cmd/urun",
		}))
	}
	if len(os.Args) > 1 && os.Args[1] == completeCommand {
		complete(os.Args[2:], os.Stdout)
		return
	}
	if handoff.IsStage(os.Args) {
		runStage(os.Args[1])
		return
	}
	// The caller's open files are kept from the stages, which may live long after
	// it: a lock would be held, a pipe would not end.
	if err := errors.Join(notePassed(os.Args), handoff.CloseOnExec()); err != nil {
		os.Exit(report(os.Stderr, err))
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// runStage runs a hidden subcommand, before the command line's parser exists.
func runStage(name string) {
	switch name {
	case handoff.Holder:
		holder.Main()
	case handoff.Monitor:
		monitor.Main()
	case handoff.Union:
		monitor.Union()
	case handoff.Network:
		monitor.Network()
	case handoff.Infra:
		server.Main()
	case handoff.Init:
		stage.Init()
	case handoff.Payload:
		stage.Run()
	case handoff.Rank:
		stage.Rank()
	case handoff.Clean:
		monitor.Clean()
	case handoff.Mount:
		imagemount.Main()
	case handoff.Files:
		files.Main()
	case handoff.Doctor:
		doctor.Stage()
	default:
		fmt.Fprintf(os.Stderr, "urun: unknown stage %q\n", name)
		os.Exit(exitRuntime)
	}
}

// exitRuntime is the exit status of failures of urun itself, as docker's.
const exitRuntime = 125

// exitStatus ends the command with a status and without a message: something
// else has said what there is to say.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
func (e exitStatus) ExitCode() int { return int(e) }

// grammar returns a pointer to the struct that the parser is built from: all of
// cli, or only its global flags and the command that the line names.
// Kong walks every field by reflection at every start, which for all commands
// takes longer than the rest of urun version.
func grammar(args []string) reflect.Value {
	all := reflect.TypeFor[cli]()
	word := commandWord(all, args)
	for field := range all.Fields() {
		if isCommand(field) && strings.EqualFold(field.Name, word) && word == strings.ToLower(word) {
			root, _ := all.FieldByName("Root")
			state, _ := all.FieldByName("State")
			debug, _ := all.FieldByName("Debug")
			linger, _ := all.FieldByName("Linger")
			return reflect.New(reflect.StructOf([]reflect.StructField{root, state, debug, linger, field}))
		}
	}
	return reflect.New(all)
}

// commandWord is the first word behind the global flags, or "" where that is not for certain.
func commandWord(all reflect.Type, args []string) string {
	for len(args) > 0 {
		flag, ok := strings.CutPrefix(args[0], "--")
		if !ok {
			return args[0]
		}
		name, _, whole := strings.Cut(flag, "=")
		field, ok := all.FieldByNameFunc(func(s string) bool { return strings.ToLower(s) == name })
		if !ok || isCommand(field) {
			return ""
		}
		args = args[1:]
		if !whole && field.Type.Kind() != reflect.Bool {
			args = args[min(1, len(args)):]
		}
	}
	return ""
}

func isCommand(f reflect.StructField) bool {
	_, ok := f.Tag.Lookup("cmd")
	return ok
}

// newParser makes the command line's parser of a grammar.
func newParser(c reflect.Value, stdout, stderr io.Writer, exit func(int)) (*kong.Kong, error) {
	options := append(runFlagOptions(),
		kong.Name("urun"),
		kong.Description("Rootless containers: urun run IMAGE [COMMAND]"),
		kong.Writers(stdout, stderr),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "containers", Title: "Containers:"},
			{Key: "images", Title: "Images:"},
			{Key: "system", Title: "System:"},
		}),
		kong.PostBuild(addExamples),
		kong.Exit(exit),
	)
	return kong.New(c.Interface(), options...)
}

// run runs one command and returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		args = []string{"--help"}
	}
	c := grammar(args)
	exited := -1
	parser, err := newParser(c, stdout, stderr, func(code int) { exited = code })
	if err != nil {
		return report(stderr, err)
	}
	ctx, err := parser.Parse(args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		printError(stderr, usageError(err, parser))
		return exitRuntime
	}
	app := &App{Root: c.Elem().FieldByName("Root").String(), Stdin: stdin, Stdout: stdout, Stderr: stderr}
	app.Log = slog.New(slog.DiscardHandler)
	flag, _ := c.Elem().FieldByName("Linger").Interface().(*time.Duration)
	if app.Linger, err = linger(flag); err != nil {
		return report(stderr, err)
	}
	if c.Elem().FieldByName("Debug").Bool() {
		if err := app.logAt("debug"); err != nil {
			return report(stderr, err)
		}
	}
	if app.Root == "" {
		app.Root = defaultRoot()
	}
	if app.Root, err = filepath.Abs(app.Root); err != nil {
		return report(stderr, err)
	}
	if state := c.Elem().FieldByName("State").String(); state != "" {
		if app.State, err = filepath.Abs(state); err != nil {
			return report(stderr, err)
		}
	}
	return report(stderr, helpful(ctx.Run(app), ctx.Selected().FullPath()))
}

// report prints an error and returns the exit status that it calls for.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	printError(stderr, err)
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return 1
}

// defaultRoot is $XDG_DATA_HOME/urun. Batch systems start programs without HOME,
// or with root's.
func defaultRoot() string {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "urun")
	}
	home := os.Getenv("HOME")
	if home == "" {
		if u, err := user.Current(); err == nil {
			home = u.HomeDir
		}
	}
	return filepath.Join(home, ".local", "share", "urun")
}

// logAt makes the log be written to standard error from a level on.
func (a *App) logAt(level string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	a.Debug = l <= slog.LevelDebug
	a.Log = slog.New(slog.NewTextHandler(a.Stderr, &slog.HandlerOptions{Level: l}))
	return nil
}

// Store opens the image store.
func (a *App) Store() (*image.Store, error) {
	s, err := image.Open(image.Options{
		Root: a.Root, InUse: a.imagesInUse, Release: func() error { return holder.Release(a.stateRoot()) }, Collected: a.collectUnpacked,
	})
	return s, storeError(err, a.Root)
}

// Containers opens the container store and cleans up after containers whose
// processes were killed.
func (a *App) Containers() (*state.Store, error) {
	st, err := state.Open(a.stateRoot())
	if err != nil {
		return nil, storeError(err, a.stateRoot())
	}
	if err := errors.Join(monitor.Sweep(st, executable()), holder.Sweep(a.stateRoot())); err != nil {
		fmt.Fprintf(a.Stderr, "urun: %v\n", err)
	}
	return st, nil
}

// stateRoot is where containers are kept: where --state says, else beside the images
// or, if these belong to somebody else, in the caller's own store. Where that is on a
// file system that takes no changes, it is a directory that the next boot may find empty.
func (a *App) stateRoot() string {
	if a.State != "" {
		return a.State
	}
	root := a.Root
	if writable(root) {
		return root
	}
	if _, err := os.Stat(root); err == nil {
		root = defaultRoot()
	}
	if !writable(root) && readOnly(root) {
		if dir, err := holder.StateDir(); err == nil {
			return dir
		}
	}
	return root // whose error says what is wrong
}

// readOnly tells whether dir, or what is there of the way to it, is on a file system that takes no changes.
func readOnly(dir string) bool {
	for {
		err := accessWrite(dir)
		if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
			dir = parent
			continue
		}
		return errors.Is(err, unix.EROFS)
	}
}

// writable tells whether something can be made at dir.
func writable(dir string) bool {
	for {
		err := accessWrite(dir)
		if !errors.Is(err, fs.ErrNotExist) {
			return err == nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}

// executable is the path of this binary, for stages.
func executable() string {
	if exe, err := os.Executable(); err == nil {
		return exe
	}
	return "/proc/self/exe"
}
