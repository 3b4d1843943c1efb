package image

import (
	"fmt"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads os/arch[/variant]; "" is this machine's platform.
func ParsePlatform(s string) (ocispec.Platform, error) {
	if s == "" {
		return normalPlatform(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}), nil
	}
	parts := strings.Split(s, "/")
	p := ocispec.Platform{OS: "linux"}
	switch {
	case len(parts) == 1 && parts[0] != "linux":
		p.Architecture = parts[0]
	case len(parts) == 1:
		p.Architecture = runtime.GOARCH
	case len(parts) == 2:
		p.OS, p.Architecture = parts[0], parts[1]
	case len(parts) == 3:
		p.OS, p.Architecture, p.Variant = parts[0], parts[1], parts[2]
	}
	if p.OS == "" || p.Architecture == "" || len(parts) > 3 {
		return p, fmt.Errorf("parse platform %q: want os/architecture[/variant]", s)
	}
	return normalPlatform(p), nil
}

// normalPlatform maps the names that uname and people use to those of Go, as the OCI image index wants them.
func normalPlatform(p ocispec.Platform) ocispec.Platform {
	p.OS = strings.ToLower(p.OS)
	p.Architecture = strings.ToLower(p.Architecture)
	p.Variant = strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i686":
		p.Architecture = "386"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	if len(p.Variant) == 1 && p.Variant[0] >= '0' && p.Variant[0] <= '9' {
		p.Variant = "v" + p.Variant
	}
	switch {
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	case p.Architecture == "arm64" && p.Variant == "v8", p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	}
	return p
}

// FormatPlatform is the form that ParsePlatform reads.
func FormatPlatform(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// platformRank says how well have suits want; 0 is not at all. A variant is suited by itself, then by lesser ones in falling order.
func platformRank(want, have ocispec.Platform) int {
	have = normalPlatform(have)
	if want.OS != have.OS || want.Architecture != have.Architecture {
		return 0
	}
	if want.Variant == have.Variant {
		return 100
	}
	wantLevel, haveLevel := variantLevel(want), variantLevel(have)
	if haveLevel > wantLevel {
		return 0
	}
	return 1 + haveLevel
}

func variantLevel(p ocispec.Platform) int {
	if len(p.Variant) == 2 && p.Variant[0] == 'v' && p.Variant[1] >= '0' && p.Variant[1] <= '9' {
		return int(p.Variant[1] - '0')
	}
	switch p.Architecture {
	case "arm64":
		return 8
	default:
		return 1
	}
}

// bestPlatform picks the manifest of an index for want; of equals the first, as the index spec says.
func bestPlatform(want ocispec.Platform, all []ocispec.Descriptor) (ocispec.Descriptor, bool) {
	var best ocispec.Descriptor
	rank := 0
	for _, d := range all {
		if d.Platform == nil || d.Annotations["vnd.docker.reference.type"] != "" {
			continue // attestations hang beside images in an index
		}
		if r := platformRank(want, *d.Platform); r > rank {
			best, rank = d, r
		}
	}
	return best, rank > 0
}
