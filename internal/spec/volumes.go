package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// userMount is a mount that a flag or the image asks for.
type userMount struct {
	mount  specs.Mount
	volume bool   // its source is a volume that the caller makes
	name   string // of the volume; empty: anonymous
}

// userMounts parses -v, --mount, --tmpfs and --shm-size.
func (b *builder) userMounts() error {
	b.shmSize = defaultShmSize
	if b.opt.ShmSize != "" {
		n, err := units.RAMInBytes(b.opt.ShmSize)
		if err != nil || n <= 0 {
			return fmt.Errorf("--shm-size %s: not a size such as 64m", b.opt.ShmSize)
		}
		b.shmSize = n
	}
	for _, s := range b.opt.Volumes {
		v, err := parseVolume(s)
		if err == nil {
			err = b.addVolume(v)
		}
		if err != nil {
			return fmt.Errorf("-v %s: %w", s, err)
		}
	}
	for _, s := range b.opt.Mounts {
		f, err := parseMount(s)
		if err == nil {
			err = b.addMount(f)
		}
		if err != nil {
			return fmt.Errorf("--mount %s: %w", s, err)
		}
	}
	for _, s := range b.opt.Tmpfs {
		m, err := parseTmpfs(s)
		if err != nil {
			return fmt.Errorf("--tmpfs %s: %w", s, err)
		}
		b.mounts = append(b.mounts, userMount{mount: m})
	}
	return nil
}

// checkTargets refuses two mounts on one target.
func (b *builder) checkTargets() error {
	for i, m := range b.mounts {
		if slices.ContainsFunc(b.mounts[:i], func(o userMount) bool { return o.mount.Destination == m.mount.Destination }) {
			return fmt.Errorf("duplicate mount point: %s", m.mount.Destination)
		}
	}
	return nil
}

// volumeFlag is -v taken apart.
type volumeFlag struct {
	source  string // empty: anonymous volume
	target  string
	options []string
}

// isPath tells a directory of the host from the name of a volume.
func (v volumeFlag) isPath() bool {
	return strings.HasPrefix(v.source, "/") || v.source == "." || v.source == ".." ||
		strings.HasPrefix(v.source, "./") || strings.HasPrefix(v.source, "../")
}

// parseVolume parses [SOURCE:]TARGET[:OPTIONS].
func parseVolume(s string) (volumeFlag, error) {
	var v volumeFlag
	parts := strings.Split(s, ":")
	switch {
	case len(parts) > 3 || slices.Contains(parts, ""):
		return v, errors.New("must be [SOURCE:]TARGET[:OPTION,...]")
	case len(parts) == 1:
		v.target = parts[0]
	default:
		v.source, v.target = parts[0], parts[1]
	}
	if len(parts) == 3 {
		v.options = strings.Split(parts[2], ",")
	}
	target, err := cleanTarget(v.target)
	if err != nil {
		return v, err
	}
	v.target = target
	if v.source != "" && !v.isPath() && (!nameLike(v.source) || len(v.source) < 2) {
		return v, hint("a directory of the host is written as an absolute path, or begins with ./",
			"%q includes invalid characters for a volume name, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", v.source)
	}
	return v, nil
}

func cleanTarget(s string) (string, error) {
	switch {
	case !path.IsAbs(s):
		return "", fmt.Errorf("invalid mount target %q: must be an absolute path", s)
	case path.Clean(s) == "/":
		return "", errors.New("invalid mount target: it cannot be the root directory")
	case strings.ContainsRune(s, 0):
		return "", errors.New("invalid mount target: NUL byte")
	}
	return path.Clean(s), nil
}

func (b *builder) addVolume(v volumeFlag) error {
	isBind := v.isPath()
	options, copyUp, err := volumeOptions(v.options, isBind)
	if err != nil {
		return err
	}
	if !isBind {
		b.mounts = append(b.mounts, volumeMount(v.source, v.target, options, copyUp))
		return nil
	}
	source, err := b.bindSource(v.source)
	if err != nil {
		return err
	}
	b.mounts = append(b.mounts, userMount{mount: specs.Mount{Destination: v.target, Type: "bind", Source: source, Options: options}})
	return nil
}

// volumeMount is a mount whose source the caller fills in.
func volumeMount(name, target string, options []string, copyUp bool) userMount {
	if options == nil {
		options = []string{"rbind", "rprivate"}
	}
	if copyUp {
		options = append(options, "copyup")
	}
	return userMount{mount: specs.Mount{Destination: target, Type: "bind", Options: options}, volume: true, name: name}
}

func (b *builder) bindSource(source string) (string, error) {
	abs, err := b.facts.Host.Abs(source)
	if err != nil {
		return "", err
	}
	if _, err := b.facts.Host.Stat(abs); errors.Is(err, fs.ErrNotExist) {
		return "", hint("make it first: directories of the host are not created", "bind source path does not exist: %s", abs)
	} else if err != nil {
		return "", fmt.Errorf("bind source: %w", err)
	}
	return abs, nil
}

// volumeOptions maps the options of -v to those of the mount; copyUp says
// whether a new volume is filled with what the image has at its target.
func volumeOptions(list []string, isBind bool) (out []string, copyUp bool, err error) {
	bind, propagation := "rbind", "rprivate"
	copyUp = true
	seen := map[string]string{}
	for _, o := range list {
		group, err := optionGroup(o, isBind)
		if err != nil {
			return nil, false, err
		}
		if old, ok := seen[group]; ok && old != o {
			return nil, false, fmt.Errorf("options %q and %q exclude each other", old, o)
		}
		seen[group] = o
		switch group {
		case "access", "exec", "suid", "dev":
			out = append(out, o)
		case "bind":
			bind = o
		case "propagation":
			propagation = o
		case "copy":
			copyUp = o == "copy"
		case "label":
			// There is no SELinux label to change.
		}
	}
	return append([]string{bind, propagation}, out...), copyUp, nil
}

// optionGroup says which setting an option of -v is about.
func optionGroup(o string, isBind bool) (string, error) {
	switch o {
	case "ro", "rw":
		return "access", nil
	case "z", "Z":
		return "label", nil
	case "exec", "noexec":
		return "exec", nil
	case "suid", "nosuid":
		return "suid", nil
	case "dev", "nodev":
		return "dev", nil
	case "bind", "rbind":
		return "bind", nil
	case "shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable":
		if isBind || o == "private" || o == "rprivate" {
			return "propagation", nil
		}
		return "", fmt.Errorf("option %q is for directories of the host", o)
	case "copy", "nocopy":
		if isBind {
			return "", fmt.Errorf("option %q is for volumes", o)
		}
		return "copy", nil
	case "U":
		return "", hint("--userns=keep-id maps ownership without changing it", "option \"U\", which changes owners on the host, is not supported")
	case "O":
		return "", fmt.Errorf("option \"O\", an overlay on a host directory, is not supported")
	}
	return "", fmt.Errorf("invalid option %q", o)
}
