package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/benchkit"
)

type bench struct {
	ranks, rounds int
	tree, dir     string
	urun, image   string
	credential    *syscall.Credential
	environment   []string
	store         string
}

// cost is what a start of all ranks took.
type cost struct {
	cpu, wall float64 // seconds
	blocks    int64   // of 512 bytes, read from disk
}

type pair struct{ urun, native cost }

const script = "import numpy; print(numpy.arange(10).sum())"

// prepare makes the image and pulls it into a store of the user's.
func (b *bench) prepare(name string) error {
	who, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("%w: make test makes that user", err)
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	if err != nil {
		return err
	}
	b.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	b.urun, b.image, b.store = filepath.Join(b.dir, "urun"), filepath.Join(b.dir, "image"), filepath.Join(b.dir, "home")
	tar := filepath.Join(b.dir, "tree.tar")
	if err := errors.Join(os.Chmod(b.dir, 0o755), os.Mkdir(b.store, 0o700), os.Chown(b.store, int(uid), int(gid))); err != nil {
		return err
	}
	for _, c := range [][]string{
		{"cp", "bin/urun", b.urun},
		{"tar", "--one-file-system", "--exclude=./dev/*", "-C", b.tree, "-cf", tar, "."},
		{"go", "run", "-buildvcs=false", "./integration/tarimage", tar, b.image},
		{"rm", tar},
		{"chmod", "-R", "a+rX", b.image},
	} {
		if err := benchkit.Command(c[0], c[1:]...); err != nil {
			return err
		}
	}
	b.environment = []string{
		"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + b.store, "USER=" + name, "URUN_ROOT=" + filepath.Join(b.store, "store"),
		"XDG_RUNTIME_DIR=" + b.store, "SLURM_JOB_ID=1", "SLURM_STEP_TASKS_PER_NODE=" + strconv.Itoa(b.ranks),
	}
	cmd := exec.Command(b.urun, "pull", "--quiet", "oci:"+b.image+":latest")
	cmd.Env, cmd.Dir = b.environment, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.credential}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("pull: %w: %s", err, stderr.String())
	}
	b.image = strings.TrimSpace(string(out))
	return nil
}

// measure starts all ranks in each way, in turn. What urun leaves behind becomes this process's child, whose CPU time
// counts when it ends: in a batch job nothing stays.
func (b *bench) measure() (rows []pair, err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	if _, err := b.native(); err != nil { // so that the first is not slower for its files' sake
		return nil, err
	}
	if err := b.forget(); err != nil {
		return nil, err
	}
	for i := range b.rounds {
		var p pair
		if p.urun, err = b.joined(i); err == nil {
			p.native, err = b.native()
		}
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "%d: %.2f s of CPU, %.2f s from a directory\n", i+1, p.urun.cpu, p.native.cpu)
		rows = append(rows, p)
	}
	return rows, nil
}

// forget has the kernel drop what it has cached of the store.
func (b *bench) forget() error {
	return filepath.WalkDir(b.store, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil { // what is dirty is not dropped
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

func (b *bench) joined(step int) (cost, error) {
	return b.all(func(rank int) *exec.Cmd {
		cmd := exec.Command(b.urun, "run", "--rm", "--hpc", "--join", b.image, "python3", "-c", script)
		cmd.Env = append(b.environment[:len(b.environment):len(b.environment)], "SLURM_STEP_ID="+strconv.Itoa(step), "SLURM_PROCID="+strconv.Itoa(rank))
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.credential}
		return cmd
	})
}

func (b *bench) native() (cost, error) {
	return b.all(func(int) *exec.Cmd {
		cmd := exec.Command("/usr/bin/python3", "-c", script)
		// exec.Command has looked it up outside.
		cmd.Path, cmd.Err = "/usr/bin/python3", nil
		cmd.Env, cmd.Dir = []string{"PATH=/usr/bin:/bin", "HOME=/"}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.credential, Chroot: b.tree}
		return cmd
	})
}

// all starts one process a rank at once, and waits for them and for all that they leave.
func (b *bench) all(start func(rank int) *exec.Cmd) (c cost, err error) {
	before, began := spent(), time.Now()
	var cmds []*exec.Cmd
	outs, errs := make([]bytes.Buffer, b.ranks), make([]bytes.Buffer, b.ranks)
	for rank := range b.ranks {
		cmd := start(rank)
		cmd.Stdout, cmd.Stderr = &outs[rank], &errs[rank]
		if err = cmd.Start(); err != nil {
			break
		}
		cmds = append(cmds, cmd)
	}
	for rank, cmd := range cmds {
		werr := cmd.Wait()
		if got := strings.TrimSpace(outs[rank].String()); werr != nil || got != "45" {
			err = errors.Join(err, fmt.Errorf("rank %d: %w, it said %q: %s", rank, werr, got, errs[rank].String()))
		}
	}
	c.wall = time.Since(began).Seconds()
	for {
		_, werr := unix.Wait4(-1, nil, 0, nil)
		if errors.Is(werr, unix.ECHILD) {
			break
		}
		if werr != nil && !errors.Is(werr, unix.EINTR) {
			return c, errors.Join(err, werr)
		}
	}
	after := spent()
	c.cpu, c.blocks = after.cpu-before.cpu, after.blocks-before.blocks
	return c, err
}

// spent is what all children that have ended took.
func spent() cost {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &r); err != nil {
		panic(err) // there is no such error for a valid call
	}
	seconds := func(t unix.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return cost{cpu: seconds(r.Utime) + seconds(r.Stime), blocks: r.Inblock}
}
