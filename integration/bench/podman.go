package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// podman is Debian's podman as its users have it, without what would slow it down here: kernel overlayfs (no
// fuse-overlayfs), crun, events and logs to plain files (there is no journal), runtime directory on a tmpfs.
type podman struct {
	dir string
	n   int
}

func newPodman(home string) (*podman, error) {
	conf := filepath.Join(home, ".config/containers")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"containers.conf": "[containers]\nlog_driver = \"k8s-file\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"crun\"\n",
		"storage.conf":    "[storage]\ndriver = \"overlay\"\n",
		"policy.json":     `{"default": [{"type": "insecureAcceptAnything"}]}` + "\n",
	} {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return &podman{dir: filepath.Join(home, "podman")}, nil
}

// fresh changes to an empty store. All share the runtime directory and with it the pause process, which is warm.
func (p *podman) fresh(ctx context.Context) error {
	if p.n > 0 {
		if err := p.remove(ctx); err != nil {
			return err
		}
	}
	p.n++
	return os.MkdirAll(p.store(), 0o700)
}

func (p *podman) store() string { return filepath.Join(p.dir, fmt.Sprint(p.n)) }

// remove deletes the store; its files are of subordinate ids and the driver has mounted its directory onto itself.
func (p *podman) remove(ctx context.Context) error {
	script := `if mountpoint -q "$1/root/overlay"; then umount -l "$1/root/overlay" || exit; fi; rm -rf "$1"`
	out, err := exec.CommandContext(ctx, "podman", p.args("unshare", "sh", "-c", script, "sh", p.store())[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove podman's store: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (p *podman) args(args ...string) []string {
	root := []string{"podman", "--root", filepath.Join(p.store(), "root"), "--runroot", filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "podman", fmt.Sprint(p.n))}
	return append(root, args...)
}

// stop removes the store and ends the pause process.
func (p *podman) stop() error {
	err := p.remove(context.Background())
	out, merr := exec.Command("podman", "system", "migrate").CombinedOutput()
	if merr != nil {
		merr = fmt.Errorf("podman system migrate: %w: %s", merr, strings.TrimSpace(string(out)))
	}
	return errors.Join(err, merr)
}

// info tells what podman runs on.
func (p *podman) info(ctx context.Context) (string, error) {
	format := `{{.Store.GraphDriverName}} (native diff {{index .Store.GraphStatus "Native Overlay Diff"}}), ` +
		`{{.Host.OCIRuntime.Name}}, cgroups {{.Host.CgroupsVersion}} by {{.Host.CgroupManager}}, network {{.Host.NetworkBackend}} with slirp4netns, events to a {{.Host.EventLogger}}`
	args := p.args("info", "--format", format)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	return strings.TrimSpace(string(out)), err
}
