package image

import (
	"strings"
	"testing"
)

const someHex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	for _, tt := range []struct {
		name, in            string
		canonical, familiar string // "" for both: an error
	}{
		{"a short name is docker's hub, library, latest", "debian", "docker.io/library/debian:latest", "debian:latest"},
		{"a tag is kept", "debian:12", "docker.io/library/debian:12", "debian:12"},
		{"a user of the hub has no library", "bitnami/redis", "docker.io/bitnami/redis:latest", "bitnami/redis:latest"},
		{"docker.io may be written", "docker.io/debian", "docker.io/library/debian:latest", "debian:latest"},
		{"the hub's real host is docker.io", "index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"},
		{"a port makes a registry", "localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"},
		{"localhost is a registry without a port", "localhost/x", "localhost/x:latest", "localhost/x:latest"},
		{"a dot makes a registry", "quay.io/a/b/c:v1", "quay.io/a/b/c:v1", "quay.io/a/b/c:v1"},
		{"an upper case host is a host", "MYHOST/x", "MYHOST/x:latest", "MYHOST/x:latest"},
		{"IPv6 hosts stand in brackets", "[::1]:5000/x:1", "[::1]:5000/x:1", "[::1]:5000/x:1"},
		{"a digest has no default tag", "debian@sha256:" + someHex, "docker.io/library/debian@sha256:" + someHex, "debian@sha256:" + someHex},
		{"a tag may stand beside a digest", "debian:12@sha256:" + someHex, "docker.io/library/debian:12@sha256:" + someHex, "debian:12@sha256:" + someHex},
		{"separators within a component", "a.b/c__d/e---f", "a.b/c__d/e---f:latest", "a.b/c__d/e---f:latest"},
		{"a port without a path is a tag", "localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"},

		{"nothing", "", "", ""},
		{"upper case repository", "Debian", "", ""},
		{"empty tag", "debian:", "", ""},
		{"bad tag", "debian:a b", "", ""},
		{"tag that begins with a dot", "debian:.x", "", ""},
		{"tag too long", "debian:" + strings.Repeat("x", 129), "", ""},
		{"digest of unknown algorithm", "debian@md5:d41d8cd98f00b204e9800998ecf8427e", "", ""},
		{"digest too short", "debian@sha256:abcd", "", ""},
		{"three underscores", "a___b", "", ""},
		{"two dots", "quay.io/a..b", "", ""},
		{"path that climbs", "quay.io/../b", "", ""},
		{"component that ends with a dash", "a-", "", ""},
		{"empty component", "quay.io//b", "", ""},
		{"leading slash", "/b", "", ""},
		{"port that is no number", "localhost:50x0/b", "", ""},
		{"name too long", "quay.io/" + strings.Repeat("x", 250), "", ""},
		{"space", " debian", "", ""},
		{"NUL", "deb\x00ian", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ParseReference(tt.in)
			if tt.canonical == "" {
				if err == nil {
					t.Fatalf("%q gives %q, want an error", tt.in, r)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.String() != tt.canonical || r.Familiar() != tt.familiar {
				t.Errorf("%q gives %q and %q, want %q and %q", tt.in, r, r.Familiar(), tt.canonical, tt.familiar)
			}
		})
	}
}

// FuzzParseReference: what parses has a canonical form that parses to the same, short form too, and a file name that stays in its
// directory.
func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"debian", "localhost:5000/x:1", "[::1]:1/a", "a/b@sha256:" + someHex, "docker.io/x", "A/b", "index.docker.io/x"} {
		f.Add(s)
	}
	s := &Store{root: "/r"}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := ParseReference(in)
		if err != nil {
			return
		}
		for _, form := range []string{r.String(), r.Familiar()} {
			again, err := ParseReference(form)
			if err != nil || again != r {
				t.Errorf("%q: form %q parses to %+v (%v), want %+v", in, form, again, err, r)
			}
		}
		file, ok := strings.CutPrefix(s.namePath(r), "/r/images/names/")
		if !ok || strings.Contains(file, "/") || file == "." || file == ".." || len(file) > 255 {
			t.Errorf("%q: file name %q", in, file)
		}
	})
}
