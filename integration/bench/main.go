// Bench compares urun with Debian's podman, crun and bubblewrap in one run, by turns, as an ordinary user.
//
//	bench [-urun PROGRAM] [-user NAME] [-out FILE]
//
// Called by root it makes what needs root (the test user, a private mount namespace in which cgroups are pure version 2,
// a tmpfs as runtime directory) and measures as that user; called by a user it measures as that user with what is there.
// It prints a table and, with -out, rewrites the part of a document between the markers; see report.go.
//
// Processes: the first one makes the image, serves it with docker-registry and writes the report; a second one
// ("__measure") is the ordinary user, calls what is compared and hands the figures back on a pipe.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/urun-dev/urun/integration/benchkit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == enterStage:
		err = enter(os.Args[2])
	case len(os.Args) > 1 && os.Args[1] == measureStage:
		err = measureMain(ctx)
	default:
		err = mainMain(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func mainMain(ctx context.Context) error {
	urun := flag.String("urun", "bin/urun", "the `program` to measure")
	name := flag.String("user", "urun-bench", "the `user` to measure as, if root calls")
	out := flag.String("out", "", "the `document` to rewrite between its markers")
	life := flag.Bool("life", false, "measure containers that run for long, and only these")
	quick := flag.Bool("quick", false, "few rounds: a trial of the program, not of urun")
	flag.Parse()
	if flag.NArg() != 0 {
		return errors.New("usage: bench [-urun PROGRAM] [-user NAME] [-out FILE] [-quick]")
	}
	res, err := bench(ctx, *urun, *name, *quick, *life)
	if err != nil {
		return err
	}
	text, target := render(res), "bench"
	if *life {
		text, target = renderLife(res), "bench-life"
	}
	fmt.Print(text)
	if *out == "" {
		return nil
	}
	return benchkit.Rewrite(*out, target, text)
}

// setup is what the measuring process is told, as JSON on its standard input.
type setup struct {
	Dir        string // the user's own directory, on a disk
	RuntimeDir string // the user's own directory, on a tmpfs
	Urun       string
	Image      string // name of the image in the registry
	UID, GID   int
	Quick      bool
	Life       bool
}

func bench(ctx context.Context, urun, name string, quick, life bool) (res *results, err error) {
	var undo cleanup
	defer func() { err = errors.Join(err, undo.run()) }()

	who, err := measuringUser(name)
	if err != nil {
		return nil, err
	}
	img, err := cachedImage(ctx)
	if err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	reg, err := startRegistry(ctx, img)
	if err != nil {
		return nil, err
	}
	undo.add(reg.stop)

	dir, err := os.MkdirTemp("/var/tmp", "urun-bench-")
	if err != nil {
		return nil, err
	}
	undo.add(func() error { return os.RemoveAll(dir) })
	su := setup{Dir: filepath.Join(dir, "user"), UID: who.uid, GID: who.gid, Quick: quick, Life: life, Image: reg.addr + "/" + imageName, Urun: filepath.Join(dir, "urun")}
	if err := errors.Join(os.Chmod(dir, 0o755), benchkit.CopyProgram(urun, su.Urun), benchkit.CopyProgram("/proc/self/exe", filepath.Join(dir, "bench"))); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Mkdir(su.Dir, 0o700), os.Chown(su.Dir, who.uid, who.gid)); err != nil {
		return nil, err
	}
	if su.RuntimeDir, err = runtimeDir(who, dir); err != nil {
		return nil, err
	}
	if !who.byRoot {
		undo.add(func() error { return os.RemoveAll(su.RuntimeDir) })
	}

	if res, err = measureAs(ctx, who, su, filepath.Join(dir, "bench")); err != nil {
		return nil, err
	}
	res.ImageBytes, res.ImageLayers, err = reg.size(ctx)
	return res, err
}

const (
	enterStage   = "__enter"
	measureStage = "__measure"
)

// measureAs starts the measuring process and reads its figures.
func measureAs(ctx context.Context, who *caller, su setup, self string) (*results, error) {
	input, err := json.Marshal(su)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	in, feed, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	defer in.Close()
	cmd := exec.CommandContext(ctx, self, measureStage)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Dir = "/"
	cmd.Env = who.env(su)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = in, os.Stderr, os.Stderr, []*os.File{w}
	if who.byRoot {
		cmd.Args = []string{self, enterStage, su.RuntimeDir}
		cmd.Env = append(cmd.Env, fmt.Sprintf("URUN_BENCH_IDS=%d:%d", who.uid, who.gid))
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, w.Close(), feed.Close())
	}
	_, err = feed.Write(input)
	err = errors.Join(err, feed.Close(), w.Close())
	var res results
	decoded := json.NewDecoder(r).Decode(&res)
	if waited := cmd.Wait(); waited != nil {
		return nil, fmt.Errorf("measure as uid %d: %w", who.uid, waited)
	}
	return &res, errors.Join(err, decoded)
}

// cleanup is what is to be undone, in reverse.
type cleanup struct{ steps []func() error }

func (c *cleanup) add(f func() error) { c.steps = append(c.steps, f) }

func (c *cleanup) run() (err error) {
	for i := len(c.steps) - 1; i >= 0; i-- {
		err = errors.Join(err, c.steps[i]())
	}
	c.steps = nil
	return err
}
