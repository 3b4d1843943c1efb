package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/benchkit"
)

// The ways to give a container its files.
const (
	kernel  = "kernel"         // overlayfs over unpacked trees
	overlay = "overlay"        // urun: overlayfs over the image server
	union   = "fuse"           // urun: the union of its own
	peer    = "fuse-overlayfs" // over unpacked trees
)

var ways = []string{kernel, overlay, union, peer}

// pulled is an image, in urun's store and as unpacked trees.
type pulled struct {
	ID    string
	Trees []string // bottom first
	Nodes int
}

// bench holds what the sessions need.
type bench struct {
	options
	memory string // a directory on a tmpfs
	tools  string
	images map[string]pulled
}

// run runs loads in a new container, or what corresponds to one.
func (b *bench) run(way, img string, loads ...string) ([]timing, error) {
	p := b.images[img]
	var cmd *exec.Cmd
	switch way {
	case kernel, peer:
		args := append([]string{b.tools + "/fsbench", "enter", way, b.memory, b.tools, strings.Join(p.Trees, ":")}, loads...)
		cmd = exec.Command("unshare", append(inNamespace(), args...)...)
	default:
		args := []string{
			"run", "--rm", "--pull", "never", "--network", "none", "--security-opt", "seccomp=unconfined",
			"--storage", way, "-v", b.tools + ":" + tools + ":ro", p.ID, tools + "/fsbench", "load",
		}
		cmd = b.urun(append(args, loads...)...)
	}
	out, err := output(cmd)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", way, strings.Join(loads, " "), err)
	}
	var all []timing
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var t timing
		if err := dec.Decode(&t); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
}

// urun is a call of urun. Nothing lingers unless the environment says so.
func (b *bench) urun(args ...string) *exec.Cmd {
	cmd := exec.Command(b.Urun, args...)
	cmd.Env = append([]string{"URUN_LINGER=0s"}, os.Environ()...)
	return cmd
}

func output(cmd *exec.Cmd) (string, error) {
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}

// inNamespace are the flags of unshare(1) for root of a namespace with all of the user's ids.
func inNamespace() []string {
	return []string{"--user", "--map-root-user", "--map-auto", "--mount"}
}

// enterMain mounts a root as root of a namespace and runs loads in it: WAY MEMORY TOOLS TREES LOAD...
func enterMain(args []string) (err error) {
	if len(args) < 5 {
		return errors.New("enter: too few arguments")
	}
	way, dir, toolsDir, trees, todo := args[0], args[1], args[2], strings.Split(args[3], ":"), args[4:]
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	root := filepath.Join(dir, "root")
	slices.Reverse(trees)
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", strings.Join(trees, ":"), dir, dir)
	if way == kernel {
		if err := unix.Mount("overlay", root, "overlay", 0, opts+",userxattr,volatile"); err != nil {
			return fmt.Errorf("mount overlay: %w", err)
		}
	} else if err := benchkit.Command("fuse-overlayfs", "-o", opts, root); err != nil {
		return err
	}
	defer func() {
		// fuse-overlayfs ends with its mount.
		err = errors.Join(err, unix.Unmount(root, unix.MNT_DETACH))
	}()
	for _, m := range [][2]string{{"/proc", "proc"}, {"/dev", "dev"}, {toolsDir, tools}} {
		if err := unix.Mount(m[0], filepath.Join(root, m[1]), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", m[0], err)
		}
	}
	cmd := exec.Command(tools+"/fsbench", append([]string{"load"}, todo...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
