package stage

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/program"
	"github.com/urun-dev/urun/internal/rootfs"
	"github.com/urun-dev/urun/internal/seccomp"
)

// Process is the user's command, to be executed in a finished container.
type Process struct {
	Spec         *specs.Process  `json:"spec"`
	Seccomp      seccomp.Program `json:"seccomp,omitempty"`
	SeccompFlags uint            `json:"seccompFlags,omitempty"`
	KeepGroups   bool            `json:"keepGroups,omitempty"`
	// Preserve are the numbers under which the command finds the files preserved.
	Preserve  []uint `json:"preserve,omitempty"`
	preserved []*os.File
	// independent: it is no child of urun's, and outlives its parent.
	independent bool
	// inside is its root directory, where this thread has another; else nil.
	inside *rootfs.Root
	// visits: it comes into a container that is there already, whose directories are not its to make.
	visits bool
}

// Exec gives up what the command may not have and executes it. It returns only
// on failure. The caller has locked the thread.
func (p Process) Exec() error {
	if err := p.chdir(); err != nil {
		return fmt.Errorf("enter working directory: %w", err)
	}
	preserved, err := p.preserve()
	if err != nil {
		return err
	}
	var todo program.Program
	todo.ResetSignals()
	if err := p.giveUp(&todo, preserved); err != nil {
		return err
	}
	// CVE-2024-21626. The channel to the monitor closes with them: that tells the
	// monitor that the command was executed.
	if err := handoff.CloseOnExec(); err != nil {
		return fmt.Errorf("close files: %w", err)
	}
	return todo.Run()
}

// chdir enters the working directory. As with docker, that of a new container is made, that of exec is not.
func (p Process) chdir() error {
	cwd := p.Spec.Cwd
	if cwd == "" {
		cwd = "/"
	}
	err := unix.Chdir(cwd)
	if p.visits && errors.Is(err, unix.ENOENT) {
		return p.noDir(cwd, err)
	}
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(cwd, 0o755); err != nil {
			return err
		}
		err = unix.Chdir(cwd)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", cwd, err)
	}
	// A path through /proc/self/fd may lead to a directory of the host
	// (CVE-2024-21626); the kernel then says "(unreachable)".
	got, err := unix.Getwd()
	if err != nil {
		return fmt.Errorf("%s: %w", cwd, err)
	}
	if !strings.HasPrefix(got, "/") {
		return fmt.Errorf("%s is outside of the container", cwd)
	}
	return nil
}

// noDir is the error of a visitor whose working directory cannot be entered.
func (p Process) noDir(cwd string, err error) error {
	err = fmt.Errorf("%s: %w", cwd, err)
	if errors.Is(err, unix.ENOENT) {
		return &codedError{127, &hintError{err, "the directory has to be in the container, or choose another one with -w"}}
	}
	return err
}

// stat is stat(2) of a file of the container.
func (p Process) stat(name string, st *unix.Stat_t) error {
	if p.inside == nil {
		return unix.Stat(name, st)
	}
	f, err := p.inside.Lookup(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fstat(int(f.Fd()), st)
}

// preserve moves the files that the command is to keep beyond the numbers that it finds them under: one of them
// may be where another is to be.
func (p Process) preserve() ([]int, error) {
	if len(p.Preserve) != len(p.preserved) {
		return nil, fmt.Errorf("got %d files for the command, want %d", len(p.preserved), len(p.Preserve))
	}
	var high []int
	for _, f := range p.preserved {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, int(slices.Max(p.Preserve))+1)
		if err != nil {
			return nil, fmt.Errorf("keep file: %w", err)
		}
		high = append(high, fd)
	}
	return high, nil
}

// lookup finds what the command's name may mean, as execvp(3) would.
func (p Process) lookup() ([]string, error) {
	if len(p.Spec.Args) == 0 {
		return nil, &codedError{125, errors.New("no command: the image has neither entrypoint nor command")}
	}
	name := p.Spec.Args[0]
	if name == "" {
		return nil, &codedError{127, errors.New(`exec "": no such file or directory`)}
	}
	if strings.Contains(name, "/") {
		return []string{name}, nil
	}
	var found []string
	for _, dir := range strings.Split(p.path(), ":") {
		// A relative entry would mean the image's working directory: skip it,
		// as Go's exec.LookPath does.
		if !path.IsAbs(dir) {
			continue
		}
		file := path.Join(dir, name)
		var st unix.Stat_t
		if p.stat(file, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			found = append(found, file)
		}
	}
	if len(found) == 0 {
		return nil, &codedError{127, fmt.Errorf("exec %q: executable file not found in $PATH", name)}
	}
	return found, nil
}

func (p Process) path() string {
	for i := len(p.Spec.Env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(p.Spec.Env[i], "PATH="); ok {
			return v
		}
	}
	return ""
}
