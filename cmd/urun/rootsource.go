package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/moby/sys/capability"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/userns"
)

// rootSource is what a container's root is made of.
type rootSource struct {
	container     string // the container's id
	id            string
	image         *monitor.Image
	config        *image.Image
	health        *spec.Health
	passwd, group []byte
	name          string
	rungs         spec.Rungs
	release       func()
}

// source gets the image, or looks at the root directory.
func (a *App) source(name string, opts spec.Options, m userns.Map, insecure bool) (*rootSource, error) {
	s := &rootSource{release: func() {}, name: name}
	if opts.Rootfs != "" {
		return s, s.directory(opts.Rootfs, a.stateRoot())
	}
	store, err := a.Store()
	if err != nil {
		return nil, err
	}
	img, err := a.holdImage(store, name, opts, insecure, s)
	if err != nil {
		return nil, err
	}
	s.id, s.config = img.ID.String(), img
	if s.health, err = spec.ParseImageHealth(img.RawConfig); err != nil {
		return nil, err
	}
	s.image = &monitor.Image{ID: s.id, Tree: img.Tree, Serve: launch.ServeOptions(m)}
	for _, l := range img.Layers {
		s.image.Data = append(s.image.Data, l.Data)
	}
	return s, s.accounts(a, store, img)
}

// holdImage gets the image and keeps others from removing it. Between the two
// it may be gone: then it is gotten again.
func (a *App) holdImage(store *image.Store, name string, opts spec.Options, insecure bool, s *rootSource) (*image.Image, error) {
	for range 3 {
		img, err := a.getImage(store, name, opts, insecure)
		if err != nil {
			return nil, err
		}
		s.release, err = store.Hold(img)
		if err == nil {
			return img, nil
		}
		s.release = func() {}
		if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("image %s: removed by another process again and again", name)
}

// getImage finds the image, pulling it as --pull says.
func (a *App) getImage(store *image.Store, name string, opts spec.Options, insecure bool) (*image.Image, error) {
	ctx, stop := interruptible()
	defer stop()
	show := newProgress(a, opts.Quiet, false)
	opt := image.PullOptions{Platform: opts.Platform, Policy: image.PolicyMissing, Insecure: insecure, Progress: show.event}
	switch opts.Pull {
	case "", "missing":
	case "newer":
		// As always, but what is here will do where the source can not be asked.
		opt.Policy = image.PolicyAlways
	default:
		opt.Policy = image.Policy(opts.Pull)
	}
	img, err := store.Pull(ctx, name, opt)
	show.end()
	if err != nil && opts.Pull == "newer" && ctx.Err() == nil {
		if old, rerr := store.Resolve(name); rerr == nil {
			return old, nil
		}
	}
	return img, interrupted(ctx, err)
}

// accounts reads the image's users and groups. It is here that a damaged tree is
// found, and made again.
func (s *rootSource) accounts(a *App, store *image.Store, img *image.Image) error {
	ctx, stop := interruptible()
	defer stop()
	tree, mended, err := store.OpenTree(ctx, img)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer tree.Close()
	if mended != "" {
		fmt.Fprintf(a.Stderr, "urun: %s\n", mended)
	}
	for name, into := range map[string]*[]byte{"etc/passwd": &s.passwd, "etc/group": &s.group} {
		raw, err := tree.ReadFile(name, maxAccounts)
		if errors.Is(err, fuseunion.ErrDamaged) {
			return &hintError{fmt.Errorf("image: read /%s: %w", name, err), "urun image verify --repair " + img.ShortID() + ", and pull the image again"}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("image: read /%s: %w", name, err)
		}
		*into = raw
	}
	return nil
}

// maxAccounts bounds an image's passwd and group files, in bytes.
const maxAccounts = 16 << 20

// directory reads the users and groups of a root directory.
func (s *rootSource) directory(dir, stateRoot string) error {
	if within(stateRoot, dir) {
		return &hintError{
			fmt.Errorf("--rootfs %s: the store %s lies in it", dir, stateRoot),
			"overlayfs can not write below what it reads: choose another store with --root",
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("--rootfs: %w", err)
	}
	defer root.Close()
	s.name = dir
	for name, into := range map[string]*[]byte{"etc/passwd": &s.passwd, "etc/group": &s.group} {
		raw, err := root.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("--rootfs: %w", err)
		}
		*into = raw
	}
	return nil
}

// within tells whether path is dir or lies below it, symlinks resolved.
func within(path, dir string) bool {
	resolve := func(p string) string {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return real
		}
		return filepath.Clean(p)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(resolve(abs), resolve(path))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func (s *rootSource) facts(opts spec.Options, m userns.Map) spec.Facts {
	me := userns.Current()
	f := spec.Facts{
		ContainerID: s.container,
		ImageName:   s.name,
		Passwd:      s.passwd, Group: s.group,
		UID: me.UID, GID: me.GID, UserName: me.Name,
		Groups: spec.Groups(), HomeDir: os.Getenv("HOME"),
		Cwd:        workingDirectory(),
		Files:      passed,
		HaveSubIDs: !m.Single(),
		StdinTTY:   isTerminal(os.Stdin),
		NumCPU:     runtime.NumCPU(),
		CgroupV2:   unifiedCgroups(),
		Rungs:      s.rungs,
		Host:       spec.System{},
	}
	if last, err := capability.LastCap(); err == nil {
		f.LastCap = int(last)
	}
	f.UIDMap, f.GIDMap = launch.Mappings(m.UIDs), launch.Mappings(m.GIDs)
	if s.config != nil {
		f.Image, f.ImageHealth = s.config.Config.Config, s.health
	}
	if name, err := os.Hostname(); err == nil {
		f.HostHostname = name
	}
	return f
}

// workingDirectory is "" where it has been removed, which matters to few.
func workingDirectory() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	return dir
}

// unifiedCgroups tells whether a cgroup namespace shows something: whether
// there is a cgroup v2 hierarchy (cgroups(7)).
func unifiedCgroups() bool {
	raw, err := os.ReadFile("/proc/self/cgroup")
	return err == nil && strings.Contains("\n"+string(raw), "\n0::")
}
