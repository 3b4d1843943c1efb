package imagemount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/userns"
)

// Command is what Run runs.
type Command struct {
	Dir  string // where the image is mounted, absolute
	Args []string
	Env  []string
}

// ExitError is the end of a command that did not end well.
type ExitError struct {
	Err  error // nil if the command ran
	Code int   // as a shell has it
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is the status that the caller's process should end with.
func (e *ExitError) ExitCode() int { return e.Code }

// Run runs a command, with the caller's standard files, in a new user namespace with
// the map m and a new mount namespace, in which the image is mounted. It serves the
// mount until the command has ended; what the command left behind finds the mount dead.
func Run(exe string, img Image, c Command, m userns.Map, opt fuseunion.ServeOptions) error {
	// The death signal comes when the thread ends that starts the command.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A terminal sends its signals to both; how the command takes them counts.
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, unix.SIGINT, unix.SIGQUIT)
	defer signal.Stop(ignored)
	tree, err := fuseunion.OpenTree(img.Tree, img.Data)
	if err != nil {
		return err
	}
	defer tree.Close()
	noteDamage(tree)
	cmd, conn, err := handoff.Command(exe, handoff.Mount)
	if err != nil {
		return err
	}
	defer conn.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = userns.Start(cmd, m, unix.CLONE_NEWNS)
	handoff.Donated(cmd)
	if err != nil {
		return err
	}
	served, err := conduct(conn, img, c, tree, opt)
	if err != nil {
		return errors.Join(err, kill(cmd))
	}
	defer served()
	forward := make(chan os.Signal, 1)
	signal.Notify(forward, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(forward)
	go func() {
		for s := range forward {
			_ = cmd.Process.Signal(s) // it has ended, or gets it
		}
	}()
	defer close(forward)
	return exitOf(cmd.Wait())
}

func exitOf(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &ExitError{Code: 128 + int(status.Signal())}
	}
	return &ExitError{Code: exit.ExitCode()}
}

// conduct has the process in the new namespaces mount, serves it, and has it become
// the command. served ends the serving.
func conduct(conn *handoff.Conn, img Image, c Command, tree *fuseunion.Tree, opt fuseunion.ServeOptions) (served func(), err error) {
	if err := conn.Send(kindEnter, enter{Image: img, Command: c, Parent: os.Getpid()}); err != nil {
		return nil, err
	}
	m, err := conn.Recv()
	if err != nil {
		return nil, fmt.Errorf("mount the image: %w", err)
	}
	if err := problem(m, kindMount); err != nil {
		return nil, err
	}
	if len(m.Files) != 1 {
		m.Close()
		return nil, fmt.Errorf("mount the image: got %d files", len(m.Files))
	}
	dev := m.Files[0]
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = fuseunion.Serve(ctx, dev, tree, opt) // its end is the mount's, which the command sees
	}()
	served = func() {
		cancel()
		<-done
		dev.Close()
	}
	if err := conn.Send(kindExec, nil); err != nil {
		served()
		return nil, err
	}
	// The end of the channel is the execve.
	if m, err = conn.Recv(); err == io.EOF {
		return served, nil
	}
	if err == nil {
		err = problem(m, "")
	}
	served()
	return nil, err
}

// problem turns a message that is not of the kind awaited into an error.
func problem(m *handoff.Message, want string) error {
	if m.Kind == want {
		return nil
	}
	m.Close()
	var f failed
	if m.Kind != kindFailed {
		return fmt.Errorf("got message %q, want %q", m.Kind, want)
	}
	if err := m.Decode(&f); err != nil {
		return err
	}
	return &ExitError{Err: errors.New(f.Error), Code: f.Code}
}

type enter struct {
	Image   Image
	Command Command
	Parent  int // pid
}

// Main is the main function of the stage.
func Main() {
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	if err := stage(parent); err != nil && !errors.Is(err, io.EOF) {
		code := 125
		var exit *ExitError
		if errors.As(err, &exit) {
			code = exit.Code
		}
		_ = parent.Send(kindFailed, failed{Error: err.Error(), Code: code}) // or nobody waits for it any more
		os.Exit(code)
	}
	os.Exit(0)
}

func stage(parent *handoff.Conn) error {
	m, err := parent.Recv()
	if err != nil {
		return err
	}
	switch m.Kind {
	case kindServe:
		return serve(parent, m)
	case kindEnter:
		return become(parent, m)
	}
	return fmt.Errorf("got message %q", m.Kind)
}

// become mounts the image in the namespaces that it is in and becomes the command.
func become(parent *handoff.Conn, m *handoff.Message) error {
	var e enter
	if err := m.Decode(&e); err != nil {
		return err
	}
	if err := userns.SetPdeathsig(e.Parent); err != nil {
		return err
	}
	// What is mounted here is not to be seen outside; what is mounted outside later is to be seen here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	dev, err := mountDirectly(e.Image, e.Command.Dir)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", e.Command.Dir, err)
	}
	if err := errors.Join(parent.Send(kindMount, nil, dev), dev.Close()); err != nil {
		return err
	}
	if _, err := parent.Expect(kindExec); err != nil {
		return err
	}
	path, err := lookPath(e.Command)
	if err != nil {
		return err
	}
	err = unix.Exec(path, e.Command.Args, e.Command.Env)
	return &ExitError{Err: fmt.Errorf("exec %s: %w", path, err), Code: 126}
}

func lookPath(c Command) (string, error) {
	for _, v := range c.Env {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			if err := os.Setenv("PATH", value); err != nil {
				return "", err
			}
		}
	}
	path, err := exec.LookPath(c.Args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", &ExitError{Err: fmt.Errorf("exec %q: %w", c.Args[0], errors.Unwrap(err)), Code: 127}
	}
	return path, nil
}
