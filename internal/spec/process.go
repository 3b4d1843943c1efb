package spec

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/sys/signal"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultStop is docker's: SIGTERM, and SIGKILL ten seconds later.
const (
	defaultStopSignal  = 15
	defaultStopTimeout = 10 * time.Second
)

// process parses the flags on the process that no image knows: limits and how it is stopped.
func (b *builder) process() error {
	b.c.StopSignal, b.c.StopTimeout = defaultStopSignal, defaultStopTimeout
	if b.opt.StopSignal != "" {
		sig, err := stopSignal(b.opt.StopSignal)
		if err != nil {
			return fmt.Errorf("--stop-signal: %w", err)
		}
		b.c.StopSignal = sig
	}
	if t := b.opt.StopTimeout; t != nil {
		if *t < -1 {
			return fmt.Errorf("--stop-timeout %d: must be seconds, or -1 to wait for ever", *t)
		}
		b.c.StopTimeout = time.Duration(*t) * time.Second
	}
	if w := b.opt.Workdir; w != "" && !path.IsAbs(w) {
		return fmt.Errorf("the working directory %q is invalid, it needs to be an absolute path", w)
	}
	for _, s := range b.opt.Ulimits {
		u, err := units.ParseUlimit(s)
		if err != nil {
			return fmt.Errorf("--ulimit %s: %w", s, err)
		}
		kind := "RLIMIT_" + strings.ToUpper(u.Name)
		if slices.ContainsFunc(b.proc.Rlimits, func(r specs.POSIXRlimit) bool { return r.Type == kind }) {
			return fmt.Errorf("--ulimit %s: given twice", u.Name)
		}
		// -1 is unlimited: RLIM_INFINITY is all ones.
		b.proc.Rlimits = append(b.proc.Rlimits, specs.POSIXRlimit{Type: kind, Hard: uint64(u.Hard), Soft: uint64(u.Soft)})
	}
	return nil
}

func stopSignal(s string) (int, error) {
	sig, err := signal.ParseSignal(s)
	if err != nil {
		return 0, err
	}
	if sig < 1 || sig > 64 {
		return 0, fmt.Errorf("invalid signal: %s", s)
	}
	return int(sig), nil
}

// args joins entrypoint and command. As in docker, an entrypoint of the user's
// drops the image's command too: that was written for the image's entrypoint.
func (b *builder) args() error {
	img := b.facts.Image
	entry, cmd := img.Entrypoint, b.opt.Args
	if b.opt.Entrypoint != nil {
		var err error
		if entry, err = parseEntrypoint(*b.opt.Entrypoint); err != nil {
			return err
		}
	} else if len(cmd) == 0 {
		cmd = img.Cmd
	}
	b.proc.Args = slices.Concat(entry, cmd)
	if len(b.proc.Args) == 0 {
		return hint("name a command behind the image", "no command specified: %s has neither entrypoint nor command", b.what())
	}
	return nil
}

func (b *builder) what() string {
	if b.c.Rootfs != "" {
		return b.c.Rootfs
	}
	return "image " + b.facts.ImageName
}

// parseEntrypoint takes one word or, as podman does, a JSON array.
func parseEntrypoint(s string) ([]string, error) {
	switch {
	case s == "":
		return nil, nil
	case strings.HasPrefix(s, "["):
		var list []string
		if err := json.Unmarshal([]byte(s), &list); err != nil {
			return nil, fmt.Errorf("--entrypoint %s: not a JSON array of strings: %w", s, err)
		}
		return list, nil
	}
	return []string{s}, nil
}

func (b *builder) workdir() error {
	w := b.opt.Workdir
	if w == "" {
		w = b.facts.Image.WorkingDir
	}
	// An image's relative directory is below the root, as in docker.
	b.proc.Cwd = path.Clean("/" + w)
	return nil
}

// hostname sets the name inside. With the host's network the host's name is
// kept, as docker does: that is the name under which the network knows it.
func (b *builder) hostname() error {
	if b.c.Namespaces.UTS.Mode != Private {
		return nil
	}
	b.c.Spec.Hostname, b.c.Spec.Domainname = b.ownHostname(), b.opt.Domainname
	return nil
}

func (b *builder) ownHostname() string {
	switch {
	case b.opt.Hostname != "":
		return b.opt.Hostname
	case (b.c.Network.Mode == "host" || b.c.Namespaces.UTS.Mode == HostNS) && b.facts.HostHostname != "":
		return b.facts.HostHostname
	}
	return b.c.ID[:min(len(b.c.ID), 12)]
}
