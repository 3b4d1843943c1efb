package spec

import (
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// mountFlag is --mount taken apart.
type mountFlag struct {
	kind           string // "bind", "volume" or "tmpfs"
	source, target string
	readOnly       bool
	propagation    string
	recursive      string // bind-recursive
	nonRecursive   bool
	noCopy         bool
	size           int64 // bytes; 0: none
	mode           string
	options        []string // exec, nosuid, ...
	only           []string // keys given that belong to one type, as "type:key"
}

// parseMount parses docker's comma-separated list of key=value.
func parseMount(s string) (mountFlag, error) {
	f := mountFlag{kind: "volume"}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return f, fmt.Errorf("not a list of key=value: %w", err)
	}
	seen := map[string]bool{}
	for _, field := range fields {
		k, v, has := strings.Cut(field, "=")
		key := mountKey(strings.ToLower(k))
		if seen[key] {
			return f, fmt.Errorf("%q is given twice", k)
		}
		seen[key] = true
		if err := f.set(key, v, has); err != nil {
			return f, err
		}
	}
	return f, f.check()
}

// mountKey folds the names of one key.
func mountKey(k string) string {
	switch k {
	case "src", "source":
		return "source"
	case "dst", "destination", "target":
		return "target"
	case "ro", "readonly":
		return "readonly"
	}
	return k
}

func (f *mountFlag) set(key, v string, has bool) error {
	flag := func(into *bool) error {
		*into = true
		if has {
			var err error
			if *into, err = strconv.ParseBool(v); err != nil {
				return fmt.Errorf("invalid value for %s: %s", key, v)
			}
		}
		return nil
	}
	owner, _, ok := strings.Cut(key, "-")
	if ok && (owner == "bind" || owner == "volume" || owner == "tmpfs") {
		f.only = append(f.only, owner+":"+key)
	}
	switch key {
	case "readonly":
		return flag(&f.readOnly)
	case "bind-nonrecursive":
		return flag(&f.nonRecursive)
	case "volume-nocopy":
		return flag(&f.noCopy)
	case "exec", "noexec", "suid", "nosuid", "dev", "nodev":
		if has {
			return fmt.Errorf("%s takes no value", key)
		}
		f.options = append(f.options, key)
		return nil
	}
	if !has || v == "" {
		return fmt.Errorf("invalid field %q: must be key=value", key)
	}
	return f.setValue(key, v)
}

func (f *mountFlag) setValue(key, v string) error {
	switch key {
	case "type":
		if v != "bind" && v != "volume" && v != "tmpfs" {
			return fmt.Errorf("type %q is not supported: must be bind, volume or tmpfs", v)
		}
		f.kind = v
	case "source":
		f.source = v
	case "target":
		target, err := cleanTarget(v)
		f.target = target
		return err
	case "bind-propagation":
		if group, err := optionGroup(v, true); err != nil || group != "propagation" {
			return fmt.Errorf("invalid bind-propagation %q", v)
		}
		f.propagation = v
	case "bind-recursive":
		if !slices.Contains([]string{"enabled", "disabled", "writable", "readonly"}, v) {
			return fmt.Errorf("invalid bind-recursive %q: must be enabled, disabled, writable or readonly", v)
		}
		f.recursive = v
	case "tmpfs-size":
		n, err := units.RAMInBytes(v)
		if err != nil || n <= 0 {
			return fmt.Errorf("invalid tmpfs-size %q", v)
		}
		f.size = n
	case "tmpfs-mode":
		if !octal(v) {
			return fmt.Errorf("invalid tmpfs-mode %q", v)
		}
		f.mode = v
	default:
		return fmt.Errorf("unknown key %q", key)
	}
	return nil
}

func octal(s string) bool {
	n, err := strconv.ParseUint(s, 8, 32)
	return err == nil && n <= 0o7777
}

// check looks at what the keys say together.
func (f *mountFlag) check() error {
	for _, o := range f.only {
		if kind, key, _ := strings.Cut(o, ":"); kind != f.kind {
			return fmt.Errorf("%s does not belong to a mount of type %s", key, f.kind)
		}
	}
	switch {
	case f.target == "":
		return errors.New("target is required")
	case f.kind == "bind" && f.source == "":
		return errors.New("source is required for a bind mount")
	case f.kind == "tmpfs" && f.source != "":
		return errors.New("a tmpfs has no source")
	case f.kind == "volume" && f.source != "" && (!nameLike(f.source) || len(f.source) < 2):
		return hint("for a directory of the host say type=bind", "invalid volume name %q", f.source)
	case f.nonRecursive && f.recursive != "" && f.recursive != "disabled":
		return conflict("bind-nonrecursive and bind-recursive")
	case f.recursive == "readonly" && !f.readOnly:
		return conflict("bind-recursive=readonly needs readonly")
	case f.recursive == "writable" && f.propagation != "" && strings.HasPrefix(f.propagation, "r"):
		return conflict("bind-recursive=writable and a recursive bind-propagation")
	}
	_, _, err := volumeOptions(f.options, f.kind == "bind")
	return err
}

func (b *builder) addMount(f mountFlag) error {
	switch f.kind {
	case "tmpfs":
		b.mounts = append(b.mounts, userMount{mount: f.tmpfs()})
		return nil
	case "volume":
		options := append([]string{"rbind", "rprivate"}, f.options...)
		if f.readOnly {
			options = append(options, "ro")
		}
		b.mounts = append(b.mounts, volumeMount(f.source, f.target, options, !f.noCopy))
		return nil
	}
	source, err := b.bindSource(f.source)
	if err != nil {
		return err
	}
	b.mounts = append(b.mounts, userMount{mount: specs.Mount{Destination: f.target, Type: "bind", Source: source, Options: f.bindOptions()}})
	return nil
}

// bindOptions: read-only goes for the mounts below as well, unless
// bind-recursive=writable; docker 25 does the same where the kernel can.
func (f *mountFlag) bindOptions() []string {
	bind, propagation, access := "rbind", f.propagation, "ro"
	if f.nonRecursive || f.recursive == "disabled" {
		bind = "bind"
	}
	if propagation == "" {
		propagation = "rprivate"
		if f.recursive == "writable" {
			propagation = "private"
		}
	}
	if bind == "rbind" && f.recursive != "writable" {
		access = "rro"
	}
	out := append([]string{bind, propagation}, f.options...)
	if f.readOnly {
		out = append(out, access)
	}
	return out
}

func (f *mountFlag) tmpfs() specs.Mount {
	options := mergeTmpfs(f.options)
	if f.readOnly {
		options = append(options, "ro")
	}
	if f.size > 0 {
		options = append(options, fmt.Sprintf("size=%d", f.size))
	}
	if f.mode != "" {
		options = append(options, "mode="+f.mode)
	}
	return specs.Mount{Destination: f.target, Type: "tmpfs", Source: "tmpfs", Options: options}
}

// mergeTmpfs puts docker's defaults before what was asked for, without those
// that it takes back.
func mergeTmpfs(asked []string) []string {
	var out []string
	for _, o := range []string{"nosuid", "nodev", "noexec"} {
		if !slices.Contains(asked, strings.TrimPrefix(o, "no")) && !slices.Contains(asked, o) {
			out = append(out, o)
		}
	}
	return append(out, asked...)
}

// parseTmpfs parses TARGET[:OPTION,...], with the options of mount(8) and tmpfs(5).
func parseTmpfs(s string) (specs.Mount, error) {
	target, rest, has := strings.Cut(s, ":")
	clean, err := cleanTarget(target)
	if err != nil {
		return specs.Mount{}, err
	}
	var options []string
	if has {
		options = strings.Split(rest, ",")
	}
	for _, o := range options {
		if err := tmpfsOption(o); err != nil {
			return specs.Mount{}, err
		}
	}
	return specs.Mount{Destination: clean, Type: "tmpfs", Source: "tmpfs", Options: mergeTmpfs(options)}, nil
}

func tmpfsOption(o string) error {
	k, v, has := strings.Cut(o, "=")
	if !has {
		if slices.Contains([]string{
			"ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "atime", "noatime", "diratime", "nodiratime",
			"relatime", "strictatime", "private", "rprivate",
		}, o) {
			return nil
		}
		return fmt.Errorf("invalid option %q", o)
	}
	ok := false
	switch k {
	case "size", "nr_inodes", "nr_blocks":
		ok = tmpfsSize(v)
	case "mode":
		ok = octal(v)
	case "uid", "gid":
		_, err := parseID(v)
		ok = err == nil
	}
	if !ok {
		return fmt.Errorf("invalid option %q", o)
	}
	return nil
}

// tmpfsSize is a number with k, m or g, or a percentage of the memory: memparse() of the kernel.
func tmpfsSize(s string) bool {
	digits := strings.TrimRight(s, "kKmMgG%")
	_, err := strconv.ParseUint(digits, 10, 63)
	return err == nil && len(s)-len(digits) <= 1
}
