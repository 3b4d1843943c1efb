package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Profile is a seccomp profile in docker's format: OCI's with rules that
// depend on the architecture, the kernel and the container's capabilities.
type Profile = moby.Seccomp

// Host is what the rules of a profile may depend on.
type Host struct {
	Arch   string // GOARCH
	Kernel string // release as uname(2) gives it, such as 6.1.0-13-amd64
}

// Default returns docker's default profile, unresolved.
func Default() *Profile { return moby.DefaultProfile() }

// Load reads a profile as `--security-opt seccomp=FILE` names it. Fields that
// docker does not know are ignored, as docker does: podman's profiles have some.
func Load(r io.Reader) (*Profile, error) {
	dec := json.NewDecoder(r)
	var p Profile
	if err := dec.Decode(&p); err != nil {
		return nil, fmt.Errorf("decode seccomp profile: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("decode seccomp profile: data after the profile")
	}
	if p.DefaultAction == "" {
		return nil, errors.New("seccomp profile: no defaultAction")
	}
	return &p, nil
}

// Resolve applies the conditions of a profile for a container with the
// capabilities caps (of its bounding set, with CAP_). The profile is not changed.
func Resolve(p *Profile, caps []string, host Host) (*specs.LinuxSeccomp, error) {
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return nil, errors.New("seccomp profile: both architectures and archMap are given")
	}
	env := conditions{caps: caps, arch: dockerArch(host.Arch)}
	if usesKernel(p) {
		v, err := parseRelease(host.Kernel)
		if err != nil {
			return nil, err
		}
		env.kernel = v
	}
	out := p.LinuxSeccomp
	out.Architectures = slices.Clone(p.Architectures)
	for _, m := range p.ArchMap {
		if m.Arch == ociArch(host.Arch) {
			out.Architectures = append(out.Architectures, m.Arch)
			out.Architectures = append(out.Architectures, m.SubArches...)
			break
		}
	}
	out.Syscalls = make([]specs.LinuxSyscall, 0, len(p.Syscalls))
	for _, s := range p.Syscalls {
		if s == nil {
			return nil, errors.New("seccomp profile: empty rule")
		}
		//lint:ignore SA1019 profiles of old docker versions have it
		name := s.Name
		if name != "" && len(s.Names) > 0 {
			return nil, errors.New("seccomp profile: both name and names are given in one rule")
		}
		if env.excluded(s.Excludes) || !env.included(s.Includes) {
			continue
		}
		rule := s.LinuxSyscall
		if name != "" {
			rule.Names = []string{name}
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return &out, nil
}

func usesKernel(p *Profile) bool {
	return slices.ContainsFunc(p.Syscalls, func(s *moby.Syscall) bool {
		return s != nil && (s.Includes != nil && s.Includes.MinKernel != nil || s.Excludes != nil && s.Excludes.MinKernel != nil)
	})
}

type conditions struct {
	caps   []string
	arch   string
	kernel moby.KernelVersion
}

// excluded: any capability, the architecture or the kernel is enough.
func (c conditions) excluded(f *moby.Filter) bool {
	if f == nil {
		return false
	}
	return slices.Contains(f.Arches, c.arch) ||
		slices.ContainsFunc(f.Caps, func(name string) bool { return slices.Contains(c.caps, name) }) ||
		f.MinKernel != nil && c.atLeast(*f.MinKernel)
}

// included: all capabilities, the architecture and the kernel are needed.
func (c conditions) included(f *moby.Filter) bool {
	if f == nil {
		return true
	}
	if len(f.Arches) > 0 && !slices.Contains(f.Arches, c.arch) {
		return false
	}
	if slices.ContainsFunc(f.Caps, func(name string) bool { return !slices.Contains(c.caps, name) }) {
		return false
	}
	return f.MinKernel == nil || c.atLeast(*f.MinKernel)
}

func (c conditions) atLeast(v moby.KernelVersion) bool {
	return c.kernel.Kernel > v.Kernel || c.kernel.Kernel == v.Kernel && c.kernel.Major >= v.Major
}

// parseRelease takes the first two numbers of a kernel release.
func parseRelease(release string) (moby.KernelVersion, error) {
	major, rest, _ := strings.Cut(release, ".")
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		rest = rest[:i]
	}
	k, err1 := strconv.ParseUint(major, 10, 32)
	m, err2 := strconv.ParseUint(rest, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return moby.KernelVersion{}, fmt.Errorf("parse kernel release %q: %w", release, err)
	}
	return moby.KernelVersion{Kernel: k, Major: m}, nil
}

// dockerArch is the name of a GOARCH in the conditions of docker's profiles.
func dockerArch(goarch string) string {
	if goarch == "386" {
		return "x86"
	}
	return goarch
}

// ociArch is the name of a GOARCH in an archMap.
func ociArch(goarch string) specs.Arch {
	switch goarch {
	case "amd64":
		return specs.ArchX86_64
	case "arm64":
		return specs.ArchAARCH64
	}
	return ""
}
