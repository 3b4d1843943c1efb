// Package artifact makes what tests need and what takes long to make, once, and keeps it in a cache.
package artifact

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Cache is the directory of what is kept from run to run; it exists.
func Cache() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "urun-test")
	return cache, os.MkdirAll(cache, 0o755)
}

// Cached returns a directory that fill has filled, now or at an earlier run with the same key. Those of other keys go.
// Of several processes that want it at once one makes it.
func Cached(cache, name string, key []string, fill func(dir string) error) (dir string, err error) {
	sum := sha256.Sum256([]byte(strings.Join(key, "\x00")))
	dir = filepath.Join(cache, fmt.Sprintf("%s-%x", name, sum[:8]))
	lock, err := os.OpenFile(filepath.Join(cache, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := flock(lock); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	old, err := filepath.Glob(filepath.Join(cache, name+"-*"))
	if err != nil {
		return "", err
	}
	for _, o := range old { // also the half of one that was broken off
		if err := os.RemoveAll(o); err != nil {
			return "", err
		}
	}
	fmt.Printf("making %s, kept for later runs as %s\n", name, dir)
	tmp := dir + ".tmp"
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return "", err
	}
	if err := fill(tmp); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return dir, os.Rename(tmp, dir)
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Digests are the SHA-256 of files, for a key.
func Digests(files ...string) (all []string, err error) {
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, fmt.Sprintf("%x", sha256.Sum256(data)))
	}
	return all, nil
}

// DebianSource finds the release and the file with its mirrors, as apt of this machine has them.
func DebianSource() (suite, sources string, err error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(release)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			suite = v
		}
	}
	for _, sources := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		data, err := os.ReadFile(sources)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		if bytes.Contains(data, []byte(suite)) && suite != "" {
			return suite, sources, nil
		}
	}
	return "", "", fmt.Errorf("apt's sources do not name a mirror of Debian %s", suite)
}

// DebianTree is a minimal Debian root directory with some packages, made by root with mmdebstrap; hooks are its customize hooks.
func DebianTree(name, include string, hooks ...string) (dir string, err error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	suite, sources, err := DebianSource()
	if err != nil {
		return "", err
	}
	args := []string{"--quiet", "--mode=root", "--variant=minbase", "--include=" + include}
	for _, h := range hooks {
		args = append(args, "--customize-hook="+h)
	}
	return Cached(cache, name, append(args, suite), func(dir string) error {
		_, err := Output("mmdebstrap", append(args, suite, dir, sources)...)
		return err
	})
}

// Output runs a program without cgo in its environment and returns what it printed; an error has the rest.
func Output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return string(out), nil
}
