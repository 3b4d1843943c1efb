package stage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/rootfs"
)

// chrootSteps are the set-up where the job around us allows neither namespaces nor mounts: a copy of the
// image, and chroot(2).
func chrootSteps() []step {
	return []step{
		{"watch the monitor", func(*setup) error { return watchParent() }},
		{"enter the container's directory", func(s *setup) error { return unix.Chdir(s.Dir) }},
		{"become root", (*setup).becomeRoot},
		{"copy image", func(s *setup) error { s.storage = StorageCopy; return s.ensureCopy() }},
		{"open root", func(s *setup) (err error) { s.root, err = rootfs.Open(copyDir); return err }},
		{"make files in /etc", (*setup).copyEtc},
		{"make devices", (*setup).nodes},
		// The devpts is the job's: it is out of reach afterwards.
		{"make terminal", (*setup).outerTerminal},
		{"change root", func(s *setup) error { return s.root.Chroot() }},
		{"close root", func(s *setup) error { return s.root.Close() }},
	}
}

// copyEtc puts the generated files, which are bound elsewhere, into the container.
func (s *setup) copyEtc() error {
	entries, err := os.ReadDir("etc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join("etc", e.Name()))
		if err != nil {
			return err
		}
		if err := s.root.WriteFile("/etc/"+e.Name(), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// nodes makes the device files that others have bound.
func (s *setup) nodes() error {
	err := s.root.Nodes()
	if errors.Is(err, unix.EPERM) {
		s.notices = append(s.notices, "no device files can be made here (CAP_MKNOD): its /dev has those of its image")
		return nil
	}
	return err
}

// outerTerminal makes a terminal in the devpts around us.
func (s *setup) outerTerminal() error {
	if !s.Spec.Process.Terminal {
		return nil
	}
	var err error
	if s.master, s.slave, err = rootfs.OuterTerminal(); err != nil {
		return err
	}
	return s.terminalFor()
}

// onlyPermitted takes out of a process what this one could not give it: without a user namespace of its own
// it has no more capabilities than the job around it.
func onlyPermitted(p *specs.Process) error {
	if p.Capabilities == nil {
		return nil
	}
	have, err := capability.NewPid2(0)
	if err == nil {
		err = have.Load()
	}
	if err != nil {
		return fmt.Errorf("own capabilities: %w", err)
	}
	c := *p.Capabilities
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted, &c.Inheritable, &c.Ambient} {
		var kept []string
		for _, name := range *set {
			n, err := capabilityNumber(name)
			if err != nil {
				return err
			}
			if have.Get(capability.PERMITTED, n) {
				kept = append(kept, name)
			}
		}
		*set = kept
	}
	p.Capabilities = &c
	return nil
}
