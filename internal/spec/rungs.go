package spec

// Rungs are the things that a container has elsewhere and cannot have on this
// machine. The zero value is a machine that gives everything.
type Rungs struct {
	NoProc bool // no new /proc can be mounted: parts of the outer one are masked
	NoSys  bool // no new /sys
	NoTUN  bool // no TUN device
}

// rungs takes the container down to what the machine allows, and says so: a
// sentence for each thing that is not as it would be elsewhere. What was asked for
// by name is not replaced: it fails later, with a hint.
func (b *builder) rungs() error {
	r := b.facts.Rungs
	if r.NoTUN && b.opt.Network == "" && len(b.opt.Publish) == 0 && !b.opt.PublishAll {
		b.c.Network.Mode = "host"
		b.notice("there is no /dev/net/tun here: the container shares this machine's network")
	}
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

func (b *builder) notice(sentence string) { b.c.Notices = append(b.c.Notices, sentence) }
