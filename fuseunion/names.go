package fuseunion

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

const (
	maxName   = 255  // NAME_MAX
	maxPath   = 4096 // PATH_MAX
	maxTarget = 4095 // longest symbolic link that Linux reads
)

const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueMarker   = ".wh..wh..opq"
)

// cleanName checks the name of an entry, or of the target of a hard link, and
// returns it without "." and ".." components and without leading, doubled and
// trailing slashes; the root is "". All names are relative to the root, as docker
// takes them.
func cleanName(name string) (string, error) {
	return cleanPath(strings.TrimLeft(name, "/"))
}

func cleanPath(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("name of %d bytes is longer than %d", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("name with a NUL byte")
	}
	clean := true // whether name is already what is to be returned
	for rest := name; rest != ""; {
		c, after, found := strings.Cut(rest, "/")
		switch {
		case c == "..":
			return withoutDots(name)
		case len(c) > maxName:
			return "", fmt.Errorf("name component of %d bytes is longer than %d", len(c), maxName)
		case c == "." || c == "" || found && after == "":
			clean = false
		}
		rest = after
	}
	if clean {
		return name, nil
	}
	// The usual unclean names are "./a/b" and "a/b/": slicing costs nothing.
	s := strings.TrimRight(strings.TrimPrefix(name, "./"), "/")
	if s == "." || s == "" {
		return "", nil
	}
	if !strings.Contains(s, "//") && !strings.Contains("/"+s+"/", "/./") {
		return strings.TrimLeft(s, "/"), nil
	}
	var kept []string
	for c := range strings.SplitSeq(s, "/") {
		if c != "" && c != "." {
			kept = append(kept, c)
		}
	}
	return strings.Join(kept, "/"), nil
}

// withoutDots cleans a name with ".." components, by its text alone.
func withoutDots(name string) (string, error) {
	s := path.Clean(name)
	if s == ".." || strings.HasPrefix(s, "../") {
		return "", errors.New("name leads out of the root")
	}
	return cleanPath(s)
}

// splitPath returns the parent directory and the last component.
func splitPath(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}
