package main

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
)

// The packages of the image in which programs are tried, besides minbase.
const toolPackages = "ca-certificates,git,python3,golang-go,npm,postgresql"

// images makes the images under test that take long or need root. One that cannot be made here is named with the
// reason, and its tests skip.
func (st *stage) images() error {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "urun-test")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	for _, prog := range []string{"tarimage", "nineimage"} {
		if _, err := output("go", "build", "-buildvcs=false", "-trimpath", "-o", st.bin(prog), "./integration/"+prog); err != nil {
			return err
		}
	}
	for _, img := range []struct {
		variable, name string
		make           func(dir string) error
		key            []string
	}{
		{"URUN_DEBIAN_IMAGE", "debian", func(dir string) error { return st.debian(dir, "1", "") }, []string{"minbase"}},
		{"URUN_TOOLS_IMAGE", "tools", func(dir string) error { return st.debian(dir, "9", toolPackages) }, []string{"tools", toolPackages}},
		{"URUN_NINE", "nine", st.nine, nil},
	} {
		key := img.key
		if key == nil {
			if key, err = digests(st.bin("nineimage"), st.bin("probe")); err != nil {
				return err
			}
		} else if key, err = debianKey(key, st.bin("tarimage")); err != nil {
			return err
		}
		dir, err := cached(cache, img.name, key, img.make)
		if err != nil {
			fmt.Printf("no %s image: %v\n", img.name, err)
			continue
		}
		to := filepath.Join(st.dir, img.name)
		if err := linkTree(dir, to); err != nil {
			return err
		}
		st.env = append(st.env, img.variable+"="+to)
	}
	return nil
}

// cached returns a directory that make has filled, now or at an earlier run with the same key. Those of other keys go.
func cached(cache, name string, key []string, fill func(dir string) error) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(key, "\x00")))
	dir := filepath.Join(cache, fmt.Sprintf("%s-%x", name, sum[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	old, err := filepath.Glob(filepath.Join(cache, name+"-*"))
	if err != nil {
		return "", err
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return "", err
		}
	}
	fmt.Printf("making the %s image, kept for later runs as %s\n", name, dir)
	tmp := dir + ".tmp"
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return "", err
	}
	if err := fill(tmp); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return dir, os.Rename(tmp, dir)
}

func digests(files ...string) (all []string, err error) {
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, fmt.Sprintf("%x", sha256.Sum256(data)))
	}
	return all, nil
}

// debianSource finds the release and the file with its mirrors, as apt of this machine has them.
func debianSource() (suite, sources string, err error) {
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

func debianKey(key []string, program string) ([]string, error) {
	suite, sources, err := debianSource()
	if err != nil {
		return []string{"none"}, nil // making it will say so
	}
	d, err := digests(sources, program)
	return append(append(key, suite), d...), err
}

// debian makes an image with mmdebstrap.
func (st *stage) debian(dir, layers, packages string) (err error) {
	suite, sources, err := debianSource()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "urun-debian-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	file := filepath.Join(work, "root.tar")
	args := []string{"--quiet", "--variant=minbase"}
	if packages != "" {
		args = append(args, "--include="+packages)
	}
	if _, err := output("mmdebstrap", append(args, suite, file, sources)...); err != nil {
		return err
	}
	_, err = output(st.bin("tarimage"), "-layers", layers, file, dir)
	return err
}

// nine makes the nine-layer image and the listing of what umoci, as root, unpacks of it.
func (st *stage) nine(dir string) (err error) {
	if os.Getuid() != 0 {
		return errors.New("the reference is unpacked by umoci as root")
	}
	image := filepath.Join(dir, "image")
	if _, err := output(st.bin("nineimage"), "-probe", st.bin("probe"), image); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "urun-nine-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	bundle := filepath.Join(work, "bundle")
	if _, err := output("umoci", "unpack", "--image", image+":latest", bundle); err != nil {
		return err
	}
	list, err := os.Create(filepath.Join(dir, "list"))
	if err != nil {
		return err
	}
	cmd := exec.Command(st.bin("probe"), "list", filepath.Join(bundle, "rootfs", "tree"))
	cmd.Stdout, cmd.Stderr = list, os.Stderr
	return errors.Join(cmd.Run(), list.Chmod(0o644), list.Close())
}

// linkTree copies a tree of plain files, by hard links where it can.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		// Linked files keep their modes; where hard links are restricted or the file system is another, copies do.
		if os.Link(p, target) == nil {
			return nil
		}
		return copyFile(p, target)
	})
}
