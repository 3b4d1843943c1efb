package spec

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// devices binds device files: a user namespace cannot make any (mknod(2)), and
// what the caller may do with them there he may do inside.
func (b *builder) devices() error {
	var named []string
	for _, s := range b.opt.Devices {
		if isCDI(s) {
			named = append(named, s)
			continue
		}
		source, target, err := parseDevice(s)
		if err != nil {
			return fmt.Errorf("--device %s: %w", s, err)
		}
		fi, err := b.facts.Host.Stat(source)
		if err != nil {
			return fmt.Errorf("--device: %w", err)
		}
		if fi.Mode()&fs.ModeDevice == 0 && !fi.IsDir() {
			return fmt.Errorf("--device %s: %s is not a device", s, source)
		}
		b.bindDevice(source, target)
	}
	if err := b.cdiDevices(named); err != nil {
		return err
	}
	if !b.opt.Privileged {
		return nil
	}
	list, err := b.facts.Host.Devices()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, name := range list {
		if !b.hasTarget(name) {
			b.bindDevice(name, name)
		}
	}
	return nil
}

func (b *builder) hasTarget(name string) bool {
	for _, m := range b.mounts {
		if m.mount.Destination == name {
			return true
		}
	}
	return false
}

func (b *builder) bindDevice(source, target string) {
	b.mounts = append(b.mounts, userMount{mount: specs.Mount{
		Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", "nosuid", "noexec"},
	}})
}

// parseDevice parses SOURCE[:TARGET][:PERMISSIONS].
func parseDevice(s string) (source, target string, err error) {
	parts := strings.Split(s, ":")
	if len(parts) > 3 {
		return "", "", fmt.Errorf("must be SOURCE[:TARGET][:PERMISSIONS]")
	}
	source, target = parts[0], parts[0]
	perms := "rwm"
	switch {
	case len(parts) == 3:
		target, perms = parts[1], parts[2]
	case len(parts) == 2 && permissions(parts[1]):
		perms = parts[1]
	case len(parts) == 2:
		target = parts[1]
	}
	if !path.IsAbs(source) {
		return "", "", hint("a path such as /dev/fuse, or vendor/class=name such as nvidia.com/gpu=all", "%q is not an absolute path", source)
	}
	if !permissions(perms) {
		return "", "", fmt.Errorf("invalid permissions %q", perms)
	}
	if !strings.Contains(perms, "r") || !strings.Contains(perms, "w") {
		return "", "", hint("without privilege a device is passed on as it is: leave out the permissions",
			"permissions %q would need a device cgroup", perms)
	}
	target, err = cleanTarget(target)
	return path.Clean(source), target, err
}

func permissions(s string) bool {
	return s != "" && len(s) <= 3 && strings.Trim(s, "rwm") == ""
}

// timezone binds the zone's file on /etc/localtime, as podman does.
func (b *builder) timezone() error {
	zone := b.opt.Timezone
	if zone == "" {
		return nil
	}
	source := "/etc/localtime"
	if zone != "local" {
		if path.IsAbs(zone) || path.Clean("/"+zone) != "/"+zone {
			return fmt.Errorf("--timezone %s: must be a name such as Europe/Berlin, or local", zone)
		}
		source = "/usr/share/zoneinfo/" + zone
	}
	if fi, err := b.facts.Host.Stat(source); err != nil || fi.IsDir() {
		return hint("zones come from the package tzdata", "--timezone %s: the machine has no zone of this name", zone)
	}
	b.mounts = append(b.mounts, userMount{mount: specs.Mount{
		Destination: "/etc/localtime", Type: "bind", Source: source, Options: []string{"bind", "rprivate", "nosuid", "nodev", "noexec", "ro"},
	}})
	return nil
}
