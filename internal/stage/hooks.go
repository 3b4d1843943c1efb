package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/rootfs"
)

// createContainerHooks run in the container's namespaces before its root is theirs: with the
// host's paths and, at the path that the bundle's config.json names, the finished root.
func (s *setup) createContainerHooks() error {
	if s.Spec.Hooks == nil || len(s.Spec.Hooks.CreateContainer) == 0 {
		return nil
	}
	// The directory of generated files is a tmpfs of this mount namespace.
	bundle := filepath.Join(s.Dir, filepath.Dir(rootfs.Merged))
	spec := *s.Spec
	spec.Root = &specs.Root{Path: filepath.Join(s.Dir, rootfs.Merged), Readonly: s.Spec.Root != nil && s.Spec.Root.Readonly}
	raw, err := json.Marshal(&spec)
	if err != nil {
		return fmt.Errorf("encode the bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return s.runHooks(s.Spec.Hooks.CreateContainer, specs.StateCreating, bundle)
}

// startContainerHooks run in the container, of whose files they are.
func (s *setup) startContainerHooks() error {
	if s.Spec.Hooks == nil {
		return nil
	}
	return s.runHooks(s.Spec.Hooks.StartContainer, specs.StateCreated, "/")
}

func (s *setup) runHooks(hooks []specs.Hook, status specs.ContainerState, bundle string) error {
	state := specs.State{Version: specs.Version, ID: filepath.Base(s.Dir), Status: status, Pid: os.Getpid(), Bundle: bundle, Annotations: s.Spec.Annotations}
	// In the outer /proc, which createContainer hooks see, this process has its number there.
	if link, err := os.Readlink("/proc/self"); err == nil {
		if _, err := fmt.Sscan(link, &state.Pid); err != nil {
			return fmt.Errorf("read /proc/self: %w", err)
		}
	}
	in, err := json.Marshal(&state)
	if err != nil {
		return fmt.Errorf("encode the state: %w", err)
	}
	for _, h := range hooks {
		if err := runHook(h, in); err != nil {
			return fmt.Errorf("%s: %w", h.Path, err)
		}
	}
	return nil
}

// runHook runs one hook, which gets the state on its input. What it says of a failure becomes part of the error.
func runHook(h specs.Hook, state []byte) error {
	ctx := context.Background()
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...) // nil would be this process's own
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(state)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("no end after its timeout of %d s", *h.Timeout)
	}
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return fmt.Errorf("%w: %s", err, last)
	}
	return err
}
