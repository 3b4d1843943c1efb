package image

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestBestPlatform(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		have       []string
		pick       int // -1 for none
	}{
		{"the exact one", "linux/amd64", []string{"linux/arm64", "linux/amd64"}, 1},
		{"a uname name", "x86_64", []string{"linux/arm64", "linux/amd64"}, 1},
		{"arm64 is arm64/v8", "linux/arm64", []string{"linux/arm64/v8"}, 0},
		{"arm is arm/v7", "linux/arm", []string{"linux/arm/v5", "linux/arm/v7"}, 1},
		{"a lesser variant will do, the highest of them", "linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v6"}, 1},
		{"a greater variant will not", "linux/arm/v6", []string{"linux/arm/v7"}, -1},
		{"amd64 before amd64/v2 on any machine", "linux/amd64", []string{"linux/amd64/v2", "linux/amd64"}, 1},
		{"amd64/v3 takes v2 before plain", "linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v2"}, 1},
		{"the first of equals", "linux/amd64", []string{"linux/amd64", "linux/amd64"}, 0},
		{"another system is none", "linux/amd64", []string{"windows/amd64"}, -1},
		{"another architecture is none", "linux/amd64", []string{"linux/riscv64", "unknown/unknown"}, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want, err := ParsePlatform(tt.want)
			if err != nil {
				t.Fatal(err)
			}
			var all []ocispec.Descriptor
			for i, h := range tt.have {
				p, err := ParsePlatform(h)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, ocispec.Descriptor{Size: int64(i), Platform: &p})
			}
			d, ok := bestPlatform(want, all)
			if got := int(d.Size); ok != (tt.pick >= 0) || ok && got != tt.pick {
				t.Errorf("picked %d (%v), want %d", got, ok, tt.pick)
			}
		})
	}
	for _, bad := range []string{"a/b/c/d", "/", "linux/"} {
		if _, err := ParsePlatform(bad); err == nil {
			t.Errorf("platform %q is accepted", bad)
		}
	}
}
