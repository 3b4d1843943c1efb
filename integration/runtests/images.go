package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/urun-dev/urun/integration/artifact"
)

// The packages of the image in which programs are tried, besides minbase.
const toolPackages = "ca-certificates,git,python3,golang-go,npm,postgresql"

// The packages of the image for make fs-stress.
const stressPackages = "fio,stress-ng,git"

// images makes those images under test of which each takes long or needs root: debian, tools, nine. One that cannot be
// made here is named with the reason, and its tests skip.
func (st *stage) images(names ...string) error {
	cache, err := artifact.Cache()
	if err != nil {
		return err
	}
	for _, prog := range []string{"tarimage", "nineimage"} {
		if _, err := artifact.Output("go", "build", "-buildvcs=false", "-trimpath", "-o", st.bin(prog), "./integration/"+prog); err != nil {
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
		{"URUN_STRESS_IMAGE", "stress", func(dir string) error { return st.debian(dir, "3", stressPackages) }, []string{"stress", stressPackages}},
		{"URUN_NINE", "nine", st.nine, nil},
	} {
		if !slices.Contains(names, img.name) {
			continue
		}
		key := img.key
		if key == nil {
			if key, err = artifact.Digests(st.bin("nineimage"), st.bin("probe")); err != nil {
				return err
			}
		} else if key, err = debianKey(key, st.bin("tarimage")); err != nil {
			return err
		}
		dir, err := artifact.Cached(cache, img.name, key, img.make)
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

func debianKey(key []string, program string) ([]string, error) {
	suite, sources, err := artifact.DebianSource()
	if err != nil {
		return []string{"none"}, nil // making it will say so
	}
	d, err := artifact.Digests(sources, program)
	return append(append(key, suite), d...), err
}

// debian makes an image with mmdebstrap.
func (st *stage) debian(dir, layers, packages string) (err error) {
	suite, sources, err := artifact.DebianSource()
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
	if _, err := artifact.Output("mmdebstrap", append(args, suite, file, sources)...); err != nil {
		return err
	}
	_, err = artifact.Output(st.bin("tarimage"), "-layers", layers, file, dir)
	return err
}

// nine makes the nine-layer image and the listing of what umoci, as root, unpacks of it.
func (st *stage) nine(dir string) (err error) {
	if os.Getuid() != 0 {
		return errors.New("the reference is unpacked by umoci as root")
	}
	image := filepath.Join(dir, "image")
	if _, err := artifact.Output(st.bin("nineimage"), "-probe", st.bin("probe"), image); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "urun-nine-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	bundle := filepath.Join(work, "bundle")
	if _, err := artifact.Output("umoci", "unpack", "--image", image+":latest", bundle); err != nil {
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
