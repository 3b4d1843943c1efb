package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/urun-dev/urun/integration/ocilayout"
)

// What the generated layer holds.
const (
	bigSize    = 512 << 20 // of /big
	moveFiles  = 2000      // in /move
	removeDirs = 50        // in /remove, each with 100 files
)

// image is an image with the tars of its layers.
type image struct {
	name   string // oci:DIR:latest
	layers []string
	nodes  int
}

// A layerFunc writes a layer.
type layerFunc func(*tar.Writer) error

// makeImage writes an image's layers, as files of their own and as an OCI layout.
func makeImage(dir string, layers ...layerFunc) (*image, error) {
	img := &image{name: "oci:" + dir + "/layout:latest"}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var fromFiles []ocilayout.Layer
	for i, fill := range layers {
		path := filepath.Join(dir, fmt.Sprintf("layer%d.tar", i))
		if err := writeTar(path, fill); err != nil {
			return nil, err
		}
		img.layers = append(img.layers, path)
		fromFiles = append(fromFiles, func(w io.Writer) error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(w, f)
			return err
		})
	}
	opt := ocilayout.Options{Tag: "latest", Architecture: runtime.GOARCH, Config: v1.ImageConfig{Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}}}
	_, err := ocilayout.Write(filepath.Join(dir, "layout"), opt, fromFiles...)
	return img, err
}

func writeTar(path string, fill layerFunc) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tw := tar.NewWriter(f)
	if err := fill(tw); err != nil {
		return err
	}
	return tw.Close()
}

// systemLayers are copies of this machine's own Debian, in three layers, and one that is generated.
func systemLayers() []layerFunc {
	multiarch := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	return []layerFunc{
		hostLayer(16_000, "bin", "sbin", "lib", "lib64", "usr/bin", "usr/sbin", "usr/lib64", "usr/lib/"+multiarch, "usr/lib/git-core", "etc/passwd", "etc/group", "etc/ld.so.cache", "etc/ld.so.conf.d"),
		hostLayer(16_000, "usr/lib/python3", "usr/lib/python3.11", "usr/lib/python3.12", "usr/lib/python3.13"),
		hostLayer(26_000, "usr/share"),
		generated,
	}
}

// hostLayer copies files of the host, at most so many, of at most 8 MB each, without owners and set-id bits.
func hostLayer(most int, roots ...string) layerFunc {
	return func(tw *tar.Writer) error {
		left := most
		for _, root := range roots {
			err := filepath.WalkDir("/"+root, func(path string, d fs.DirEntry, err error) error {
				if left <= 0 {
					return fs.SkipAll
				}
				if err != nil {
					return nil // not there, or not readable for this user
				}
				left--
				return hostEntry(tw, path, d)
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
}

func hostEntry(tw *tar.Writer, path string, d fs.DirEntry) error {
	name := strings.TrimPrefix(path, "/")
	info, err := d.Info()
	if err != nil {
		return err
	}
	switch {
	case d.IsDir():
		return ocilayout.Dir(tw, name, int64(info.Mode().Perm()))
	case d.Type() == fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return ocilayout.Symlink(tw, name, target)
	case d.Type().IsRegular() && info.Size() < 8<<20:
		err := ocilayout.HostFile(tw, name, path)
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return err
	}
	return nil
}

// generated is what is read and changed in particular.
func generated(tw *tar.Writer) error {
	for _, name := range []string{"tmp", "proc", "dev", "sys", "run", "root", "move", "remove", "small"} {
		if err := ocilayout.Dir(tw, name, 0o755); err != nil {
			return err
		}
	}
	for i := range moveFiles {
		if err := ocilayout.File(tw, fmt.Sprintf("move/file-%04d", i), 0o644, "moved\n"); err != nil {
			return err
		}
	}
	for i := range removeDirs * 100 {
		if i%100 == 0 {
			if err := ocilayout.Dir(tw, fmt.Sprintf("remove/%02d", i/100), 0o755); err != nil {
				return err
			}
		}
		if err := ocilayout.File(tw, fmt.Sprintf("remove/%02d/file-%02d", i/100, i%100), 0o644, "removed\n"); err != nil {
			return err
		}
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644, Size: bigSize, ModTime: ocilayout.Epoch}); err != nil {
		return err
	}
	rnd := rand.NewChaCha8([32]byte{1})
	_, err := io.CopyN(tw, rnd, bigSize)
	return err
}

// plainLayers are n empty files, 100 in a directory, in so many layers.
func plainLayers(n, layers int) []layerFunc {
	all := make([]layerFunc, layers)
	for l := range all {
		all[l] = func(tw *tar.Writer) error {
			for i := l; i < n; i += layers {
				if err := ocilayout.File(tw, fmt.Sprintf("files/%05d/file-%d", i/100, i), 0o644, ""); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return all
}

// listPaths writes the names of all entries of an image's tars to a file.
func (img *image) listPaths(to string) error {
	seen := map[string]bool{}
	for _, layer := range img.layers {
		f, err := os.Open(layer)
		if err != nil {
			return err
		}
		defer f.Close()
		for tr := tar.NewReader(f); ; {
			hdr, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			seen[strings.TrimSuffix(hdr.Name, "/")] = true
		}
	}
	paths := make([]string, 0, len(seen))
	for p := range seen {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	img.nodes = len(paths)
	return os.WriteFile(to, []byte(strings.Join(paths, "\x00")), 0o644)
}

// withXattr is a layer with one extended attribute, so that the server has to be asked for them.
func withXattr(tw *tar.Writer) error {
	for _, name := range []string{"tmp", "proc", "dev", "sys", "run", "root"} {
		if err := ocilayout.Dir(tw, name, 0o755); err != nil {
			return err
		}
	}
	return ocilayout.Entry(tw, &tar.Header{
		Typeflag: tar.TypeReg, Name: "usr/with-xattr", Mode: 0o644,
		PAXRecords: map[string]string{"SCHILY.xattr.user.color": "blue"},
	}, "x")
}
