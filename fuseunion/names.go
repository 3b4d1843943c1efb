package fuseunion

import (
	"errors"
	"fmt"
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

// cleanName checks the name of an entry and returns it without "." components,
// doubled and trailing slashes; the root is "".
func cleanName(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return "", errors.New("absolute name")
	}
	return cleanPath(name)
}

// cleanLink does the same for the target of a hard link. Some builders write
// targets with a leading slash; they mean the image's root.
func cleanLink(name string) (string, error) {
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
			return "", errors.New(`name with a ".." component`)
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

// splitPath returns the parent directory and the last component.
func splitPath(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}
