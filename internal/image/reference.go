package image

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	defaultRegistry  = "docker.io"
	defaultNamespace = "library"
	defaultTag       = "latest"

	maxNameLength = 255
	maxTagLength  = 128
)

// Reference names an image in a registry: registry/repository[:tag][@digest], with docker's defaults filled in.
type Reference struct {
	Registry   string // host[:port]; docker.io for docker's hub
	Repository string // library/debian
	Tag        string // latest where neither tag nor digest was given; may be empty beside a digest
	Digest     digest.Digest
}

// ParseReference reads a reference as docker does: "debian" is docker.io/library/debian:latest.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("parse image reference %q: %w", s, err)
	}
	return r, nil
}

func parseReference(s string) (Reference, error) {
	var r Reference
	rest, dgst, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		d, err := parseDigest(dgst)
		if err != nil {
			return r, err
		}
		r.Digest = d
	}
	slash := strings.LastIndexByte(rest, '/')
	if i := strings.LastIndexByte(rest, ':'); i > slash {
		r.Tag = rest[i+1:]
		rest = rest[:i]
		if !validTag(r.Tag) {
			return r, fmt.Errorf("invalid tag %q", r.Tag)
		}
	} else if !hasDigest {
		r.Tag = defaultTag
	}
	r.Registry, r.Repository = splitRegistry(rest)
	if r.Registry == "index.docker.io" || r.Registry == "registry-1.docker.io" {
		r.Registry = defaultRegistry
	}
	if r.Registry == defaultRegistry && !strings.Contains(r.Repository, "/") {
		r.Repository = defaultNamespace + "/" + r.Repository
	}
	if !validRegistry(r.Registry) {
		return r, fmt.Errorf("invalid registry host %q", r.Registry)
	}
	if err := checkRepository(r.Repository); err != nil {
		return r, err
	}
	if len(r.Name()) > maxNameLength {
		return r, fmt.Errorf("name is longer than %d bytes", maxNameLength)
	}
	return r, nil
}

// splitRegistry takes the first component for a host if it could not be a part of a docker hub name.
func splitRegistry(s string) (registry, repository string) {
	first, rest, ok := strings.Cut(s, "/")
	if ok && (first == "localhost" || strings.ContainsAny(first, ".:") || strings.ToLower(first) != first) {
		return first, rest
	}
	return defaultRegistry, s
}

// Name is the reference without tag and digest.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String is the canonical form, with every default spelled out.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// Familiar is the short form that people type: "debian:12" for docker.io/library/debian:12.
func (r Reference) Familiar() string {
	return strings.TrimPrefix(strings.TrimPrefix(r.String(), defaultRegistry+"/"), defaultNamespace+"/")
}

// FamiliarName is Familiar without tag and digest.
func (r Reference) FamiliarName() string {
	return Reference{Registry: r.Registry, Repository: r.Repository}.Familiar()
}

// identifier is what a registry is asked for: the digest if there is one, or else the tag.
func (r Reference) identifier() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

func parseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("invalid digest %q", s)
	}
	if d.Algorithm() != digest.SHA256 && d.Algorithm() != digest.SHA512 {
		return "", fmt.Errorf("digest algorithm %s: %w", d.Algorithm(), ErrUnsupported)
	}
	return d, nil
}

func validTag(s string) bool {
	if s == "" || len(s) > maxTagLength || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// checkRepository accepts path components of lower case letters and digits, separated inside by one '.', one
// or two '_', or any number of '-' (the grammar of the distribution project).
func checkRepository(s string) error {
	if s == "" {
		return fmt.Errorf("repository is empty")
	}
	if strings.ToLower(s) != s {
		return fmt.Errorf("repository %q must be lower case", s)
	}
	for part := range strings.SplitSeq(s, "/") {
		if !validComponent(part) {
			return fmt.Errorf("invalid repository component %q", part)
		}
	}
	return nil
}

func validComponent(s string) bool {
	if s == "" || !isAlnum(s[0]) || !isAlnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if isAlnum(s[i]) {
			i++
			continue
		}
		j := i
		for j < len(s) && !isAlnum(s[j]) {
			j++
		}
		switch sep := s[i:j]; {
		case sep == "." || sep == "_" || sep == "__":
		case strings.Trim(sep, "-") == "":
		default:
			return false
		}
		i = j
	}
	return true
}

func validRegistry(s string) bool {
	host, port, hasPort := s, "", false
	if strings.HasPrefix(s, "[") {
		i := strings.IndexByte(s, ']')
		if i < 2 {
			return false
		}
		for _, c := range []byte(s[1:i]) {
			if !isHex(c) && c != ':' {
				return false
			}
		}
		port, hasPort = strings.CutPrefix(s[i+1:], ":")
		if !hasPort && s[i+1:] != "" {
			return false
		}
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		for part := range strings.SplitSeq(host, ".") {
			if !validHostLabel(part) {
				return false
			}
		}
	}
	if !hasPort {
		return true
	}
	if port == "" || len(port) > 5 {
		return false
	}
	for _, c := range []byte(port) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func validHostLabel(s string) bool {
	if s == "" || !isAlnum(s[0]) || !isAlnum(s[len(s)-1]) {
		return false
	}
	for _, c := range []byte(s) {
		if !isAlnum(c) && c != '-' {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
