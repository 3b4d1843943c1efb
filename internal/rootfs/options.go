package rootfs

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Plan is one mount, its options taken apart.
type Plan struct {
	Source, Target, Type string

	Bind, Recursive bool
	// Attr is what mount_setattr(2) is asked for. AttrRecursive tells whether
	// it goes for the mounts below as well.
	Attr          unix.MountAttr
	AttrRecursive bool
	// Data are options of the filesystem itself, "key=value" or "key".
	Data []string
	// CopyUp fills an empty source, or a new tmpfs, with what the image has at
	// the target, as volumes do.
	CopyUp bool
	// Create makes the target where the image has none.
	Create bool
}

type attrFlag struct{ set, clear uint64 }

// attrFlags are the options that mount_setattr(2) takes.
func attrFlags(name string) (attrFlag, bool) {
	switch name {
	case "ro":
		return attrFlag{set: unix.MOUNT_ATTR_RDONLY}, true
	case "rw":
		return attrFlag{clear: unix.MOUNT_ATTR_RDONLY}, true
	case "nosuid":
		return attrFlag{set: unix.MOUNT_ATTR_NOSUID}, true
	case "suid":
		return attrFlag{clear: unix.MOUNT_ATTR_NOSUID}, true
	case "nodev":
		return attrFlag{set: unix.MOUNT_ATTR_NODEV}, true
	case "dev":
		return attrFlag{clear: unix.MOUNT_ATTR_NODEV}, true
	case "noexec":
		return attrFlag{set: unix.MOUNT_ATTR_NOEXEC}, true
	case "exec":
		return attrFlag{clear: unix.MOUNT_ATTR_NOEXEC}, true
	case "nodiratime":
		return attrFlag{set: unix.MOUNT_ATTR_NODIRATIME}, true
	case "diratime":
		return attrFlag{clear: unix.MOUNT_ATTR_NODIRATIME}, true
	case "noatime":
		return attrFlag{set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "relatime":
		return attrFlag{set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "strictatime":
		return attrFlag{set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "nosymfollow":
		return attrFlag{set: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	}
	return attrFlag{}, false
}

// propagations are the types of propagation, with a leading r for the mounts
// below too.
func propagation(name string) (uint64, bool) {
	switch name {
	case "private":
		return unix.MS_PRIVATE, true
	case "shared":
		return unix.MS_SHARED, true
	case "slave":
		return unix.MS_SLAVE, true
	case "unbindable":
		return unix.MS_UNBINDABLE, true
	}
	return 0, false
}

// Parse takes the options of an OCI mount apart. Words that are not mount
// options are handed to the filesystem, except for binds, which have none.
func Parse(m specs.Mount) (Plan, error) {
	p := Plan{Source: m.Source, Target: m.Destination, Type: m.Type, Create: true}
	if m.Type == "bind" {
		p.Bind = true
	}
	for _, opt := range m.Options {
		if err := p.option(opt); err != nil {
			return Plan{}, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	if p.Target == "" || !strings.HasPrefix(p.Target, "/") {
		return Plan{}, fmt.Errorf("mount %q: not an absolute path", p.Target)
	}
	return p, nil
}

func (p *Plan) option(opt string) error {
	switch opt {
	case "defaults", "":
		return nil
	case "bind":
		p.Bind = true
		return nil
	case "rbind":
		p.Bind, p.Recursive = true, true
		return nil
	case "copyup", "tmpcopyup":
		p.CopyUp = true
		return nil
	case "nocopy", "notmpcopyup":
		p.CopyUp = false
		return nil
	}
	if f, ok := attrFlags(opt); ok {
		p.addAttr(f)
		return nil
	}
	if rest, ok := strings.CutPrefix(opt, "r"); ok {
		if prop, ok := propagation(rest); ok {
			p.Attr.Propagation = prop
			p.AttrRecursive = true
			return nil
		}
		if f, ok := attrFlags(rest); ok { // rro, rnosuid, ...: OCI's recursive attributes
			p.addAttr(f)
			p.AttrRecursive = true
			return nil
		}
	}
	if prop, ok := propagation(opt); ok {
		p.Attr.Propagation = prop
		return nil
	}
	if p.Bind {
		return fmt.Errorf("unknown option %q", opt)
	}
	p.Data = append(p.Data, opt)
	return nil
}

func (p *Plan) addAttr(f attrFlag) {
	// A later option wins over an earlier one. "rw", "exec" and their like only
	// take back what an earlier option said: what the source's own mount forbids
	// stays forbidden (and the kernel would answer EPERM in a user namespace).
	p.Attr.Attr_set = p.Attr.Attr_set&^f.clear | f.set
	p.Attr.Attr_clr |= f.clear & unix.MOUNT_ATTR__ATIME
}
