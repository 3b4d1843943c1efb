package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"
)

// The Container Device Interface: vendor/class=name stands for what a vendor's
// specification says a container needs of a device, as with --device nvidia.com/gpu=all.

// cdiDirs are the directories of specifications; a later one goes before an earlier one.
func (b *builder) cdiDirs() []string {
	if len(b.opt.CDIDirs) > 0 {
		return b.opt.CDIDirs
	}
	if list, ok := b.facts.Host.LookupEnv("CDI_SPEC_DIRS"); ok && list != "" {
		return filepath.SplitList(list)
	}
	dirs := slices.Clone(cdi.DefaultSpecDirs)
	config, _ := b.facts.Host.LookupEnv("XDG_CONFIG_HOME")
	if !path.IsAbs(config) && path.IsAbs(b.facts.HomeDir) {
		config = path.Join(b.facts.HomeDir, ".config")
	}
	if path.IsAbs(config) {
		dirs = append(dirs, path.Join(config, "cdi"))
	}
	return dirs
}

// isCDI tells a device of a specification from the path of a device file.
func isCDI(s string) bool { return !strings.HasPrefix(s, "/") && parser.IsQualifiedName(s) }

// cdiDevices adds what the specifications say of the devices; what a specification
// says of all of its devices is added once.
func (b *builder) cdiDevices(names []string) error {
	if len(names) == 0 {
		return nil
	}
	dirs := b.cdiDirs()
	registry, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("--device %s: %w", names[0], err)
	}
	done := map[string]bool{}
	for _, name := range names {
		d := registry.GetDevice(name)
		if d == nil {
			return unknownDevice(registry, name, dirs)
		}
		s := d.GetSpec()
		edits := []*cdispecs.ContainerEdits{&d.ContainerEdits}
		if !done[s.GetPath()] {
			edits = append([]*cdispecs.ContainerEdits{&s.ContainerEdits}, edits...)
		}
		done[s.GetPath()] = true
		for _, e := range edits {
			if err := b.cdiEdits(e); err != nil {
				return fmt.Errorf("--device %s (%s): %w", name, s.GetPath(), err)
			}
		}
		b.c.CDIDevices = append(b.c.CDIDevices, name)
	}
	return nil
}

// unknownDevice says where it was looked for, and what was wrong there.
func unknownDevice(registry *cdi.Cache, name string, dirs []string) error {
	broken := registry.GetErrors()
	for _, file := range slices.Sorted(maps.Keys(broken)) {
		if list := broken[file]; len(list) > 0 && !errors.Is(list[0], fs.ErrNotExist) {
			return fmt.Errorf("--device %s: %s: %s", name, file, strings.ReplaceAll(list[0].Error(), "\n", " "))
		}
	}
	cure := "a vendor's program writes specifications: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml; other directories: --cdi-spec-dir"
	if known := registry.ListDevices(); len(known) > 0 {
		cure = "there are " + strings.Join(known[:min(len(known), 8)], ", ")
	}
	return hint(cure, "--device %s: no such device in the specifications of %s", name, strings.Join(dirs, ", "))
}

func (b *builder) cdiEdits(e *cdispecs.ContainerEdits) error {
	b.cdiEnv = append(b.cdiEnv, e.Env...)
	for _, d := range e.DeviceNodes {
		if err := b.cdiNode(d); err != nil {
			return err
		}
	}
	for _, m := range e.Mounts {
		if err := b.cdiMount(m); err != nil {
			return err
		}
	}
	for _, h := range e.Hooks {
		if err := b.cdiHook(h); err != nil {
			return err
		}
	}
	for _, gid := range e.AdditionalGIDs {
		b.cdiGroup(gid)
	}
	if len(e.NetDevices) > 0 {
		return errors.New("it moves a network device of the machine into the container, which takes privilege")
	}
	if e.IntelRdt != nil {
		b.notice("the device asks for a class of Intel RDT, which takes privilege: it is left out")
	}
	return nil
}

const staleSpec = "the specification may be of another driver or another node: have it generated anew"

// cdiNode binds a device file, as --device does, with the owner and the mode that it has on the machine.
func (b *builder) cdiNode(d *cdispecs.DeviceNode) error {
	source := d.HostPath
	if source == "" {
		source = d.Path
	}
	target, err := cleanTarget(d.Path)
	if err != nil {
		return err
	}
	fi, err := b.facts.Host.Stat(source)
	if err != nil {
		return hint(staleSpec, "device file: %w", err)
	}
	if fi.Mode()&(fs.ModeDevice|fs.ModeNamedPipe) == 0 {
		return hint(staleSpec, "%s is not a device", source)
	}
	if !b.hasTarget(target) {
		b.bindDevice(source, target)
	}
	return nil
}

func (b *builder) cdiMount(m *cdispecs.Mount) error {
	target, err := cleanTarget(m.ContainerPath)
	if err != nil {
		return err
	}
	if b.hasTarget(target) {
		return nil // the user's own, or that of another device of the vendor
	}
	kind, options := m.Type, slices.Clone(m.Options)
	switch kind {
	case "", "bind", "none":
		kind = "bind"
		if _, err := b.facts.Host.Stat(m.HostPath); err != nil {
			return hint(staleSpec, "mount: %w", err)
		}
		if !slices.Contains(options, "rbind") && !slices.Contains(options, "bind") {
			options = append([]string{"rbind"}, options...)
		}
	case "tmpfs":
	default:
		return fmt.Errorf("mount %s: a file system of type %s takes privilege", m.ContainerPath, kind)
	}
	b.mounts = append(b.mounts, userMount{mount: specs.Mount{Destination: target, Type: kind, Source: m.HostPath, Options: options}})
	return nil
}

// cdiHook adds a hook that runs in the container's namespaces. Others run outside of them, where
// there is no more than the user's own processes.
func (b *builder) cdiHook(h *cdispecs.Hook) error {
	hook := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout}
	if b.c.Spec.Hooks == nil {
		b.c.Spec.Hooks = &specs.Hooks{}
	}
	hooks := b.c.Spec.Hooks
	switch h.HookName {
	case cdi.CreateContainerHook:
		if _, err := b.facts.Host.Stat(h.Path); err != nil {
			return hint(staleSpec, "hook: %w", err)
		}
		hooks.CreateContainer = append(hooks.CreateContainer, hook)
	case cdi.StartContainerHook:
		hooks.StartContainer = append(hooks.StartContainer, hook)
	default:
		return fmt.Errorf("a %s hook (%s) runs outside of the container: only createContainer and startContainer hooks can be run", h.HookName, h.Path)
	}
	return nil
}

// cdiGroup: what a group of the machine may open, only who belongs to it may, also in a container.
func (b *builder) cdiGroup(gid uint32) {
	switch {
	case gid == 0 || int(gid) == b.facts.GID:
	case !slices.Contains(b.facts.Groups, int(gid)):
		b.notice(fmt.Sprintf("the device asks for group %d, which you do not belong to: what is for that group alone cannot be opened", gid))
	case len(b.opt.GroupAdd) == 0:
		b.opt.GroupAdd = []string{keepGroups}
	case !slices.Contains(b.opt.GroupAdd, keepGroups):
		b.notice(fmt.Sprintf("the device asks for group %d, which --group-add keep-groups would keep", gid))
	}
}

// Groups are the supplementary groups of this process; none where they cannot be read.
func Groups() []int {
	list, err := os.Getgroups()
	if err != nil {
		return nil
	}
	return list
}
