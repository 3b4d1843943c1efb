package spec

// Rungs are the things that a container has elsewhere and cannot have on this
// machine. The zero value is a machine that gives everything.
type Rungs struct {
	NoProc bool // no new /proc can be mounted: parts of the outer one are masked
	NoSys  bool // no new /sys
	NoTUN  bool // no TUN device
	NoVeth bool // and no veth pair with a packet socket in its place
	NoFuse bool // no FUSE mount
	// NoPivot has the container's root moved over the outer one.
	NoPivot bool

	NoUserNS bool // root of the container is root of this job
	NoMounts bool // and no mounts can be made either, nor other namespaces: all that is left is chroot(2)
}

// rungs takes the container down to what the machine allows, and says so: a
// sentence for each thing that is not as it would be elsewhere. What was asked for
// by name is not replaced: it fails later, with a hint.
func (b *builder) rungs() error {
	r := b.facts.Rungs
	if r.NoMounts {
		return b.chroot()
	}
	if r.NoUserNS {
		b.notice("no user namespace can be made here: root in the container is root of this job")
	}
	b.c.NoPivot = r.NoPivot
	if err := b.plain(r); err != nil {
		return err
	}
	b.withoutTUN(r)
	if r.NoProc && b.c.Namespaces.PID.Mode == Private {
		if b.opt.PID != "" {
			return hint("leave out --pid, and the container shares the outer pid namespace",
				"--pid %s: parts of the outer /proc are masked, and a pid namespace needs one of its own", b.opt.PID)
		}
		b.c.Namespaces.PID.Mode = HostNS
		b.notice("parts of the outer /proc are masked: the container shares it, and the outer pid namespace")
	}
	if r.NoSys && b.c.Network.mode() == Private {
		b.notice("parts of the outer /sys are masked: the container shares it")
	}
	return nil
}

// withoutTUN takes what is there instead of a TUN. The programs of others (pasta, slirp4netns) know nothing else.
func (b *builder) withoutTUN(r Rungs) {
	n := &b.c.Network
	switch {
	case !r.NoTUN || n.Mode != "slirp":
	case !r.NoVeth:
		if n.Slirp.Driver != "pasta" && n.Slirp.Driver != "slirp4netns" {
			n.NoTUN = true
			b.notice("there is no /dev/net/tun here: a veth pair and a packet socket take its place")
		}
	case b.opt.Network == "" && len(b.opt.Publish) == 0 && !b.opt.PublishAll:
		n.Mode = "host"
		b.notice("there is no /dev/net/tun here: the container shares this machine's network")
	}
}

// plain has the image as plain files where FUSE cannot serve it. That is said by who does it.
func (b *builder) plain(r Rungs) error {
	if r.NoFuse && b.opt.Storage == "fuse" {
		return hint("leave out --storage, or give the job /dev/fuse: --device /dev/fuse", "--storage fuse: no FUSE mount can be had here")
	}
	// What is only copied need not be served.
	b.c.Plain = r.NoFuse || b.opt.Storage == "copy"
	return nil
}

func (b *builder) notice(sentence string) { b.c.Notices = append(b.c.Notices, sentence) }
