package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Sources of images that are not registries.
const (
	transportOCI           = "oci"
	transportOCIArchive    = "oci-archive"
	transportDockerArchive = "docker-archive"
)

// splitTransport takes transport:location apart.
func splitTransport(ref string) (kind, location string, ok bool) {
	kind, location, ok = strings.Cut(ref, ":")
	switch kind {
	case transportOCI, transportOCIArchive, transportDockerArchive:
		return kind, location, ok
	}
	return "", "", false
}

// splitLocation takes PATH[:SUFFIX] apart. A path that exists as it is has no suffix.
func splitLocation(location string) (path, suffix string) {
	if _, err := os.Stat(location); err == nil {
		return location, ""
	}
	// The shortest path that exists: a suffix may hold colons and slashes itself (docker-archive:FILE:host:5000/x:1).
	for i := range len(location) {
		if location[i] != ':' {
			continue
		}
		if _, err := os.Stat(location[:i]); err == nil {
			return location[:i], location[i+1:]
		}
	}
	return location, ""
}

// pullLocal pulls one image from a directory or an archive.
func (s *Store) pullLocal(ctx context.Context, kind, location string, want wantPlatform, rep *reporter) (_ *Image, err error) {
	path, suffix := splitLocation(location)
	src, err := s.openLocal(kind, path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	f, err := src.find(ctx, suffix, want)
	if err != nil {
		return nil, err
	}
	return s.add(ctx, f, want, rep)
}

// localSource is a directory or archive with images in it.
type localSource interface {
	// find gives the image with this name or tag; "" is the only one.
	find(ctx context.Context, name string, want wantPlatform) (*found, error)
	// all gives every image.
	all(ctx context.Context, want wantPlatform) ([]*found, error)
	io.Closer
}

func (s *Store) openLocal(kind, path string) (localSource, error) {
	if kind == transportOCI {
		root, err := filepath.Abs(path) // its name becomes the image's
		if err != nil {
			return nil, err
		}
		return openLayout(dirTree{root}, root)
	}
	return s.openArchive(path, kind)
}

// fileTree is a directory, or a tar that looks like one.
type fileTree interface {
	open(name string) (io.ReadSeekCloser, int64, error)
	io.Closer
}

// dirTree is a directory on disk.
type dirTree struct{ root string }

func (d dirTree) open(name string) (io.ReadSeekCloser, int64, error) {
	f, err := os.Open(filepath.Join(d.root, filepath.FromSlash(name)))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.Name())
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func (dirTree) Close() error { return nil }

func readTreeFile(t fileTree, name string, most int64) ([]byte, error) {
	f, _, err := t.open(name)
	if err != nil {
		return nil, err
	}
	data, err := readAtMost(f, most)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// layout is an OCI image layout (image-layout.md of the image spec).
type layout struct {
	tree  fileTree
	where string
	index ocispec.Index
}

func openLayout(tree fileTree, where string) (*layout, error) {
	raw, err := readTreeFile(tree, ocispec.ImageLayoutFile, maxManifestSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not an OCI image layout: %w", where, err)
	}
	if err != nil {
		return nil, err
	}
	var version ocispec.ImageLayout
	if err := json.Unmarshal(raw, &version); err != nil {
		return nil, fmt.Errorf("parse %s of %s: %w", ocispec.ImageLayoutFile, where, err)
	}
	if !strings.HasPrefix(version.Version, "1.") {
		return nil, fmt.Errorf("OCI image layout version %q: %w", version.Version, ErrUnsupported)
	}
	raw, err = readTreeFile(tree, ocispec.ImageIndexFile, maxManifestSize)
	if err != nil {
		return nil, err
	}
	l := &layout{tree: tree, where: where}
	if err := json.Unmarshal(raw, &l.index); err != nil {
		return nil, fmt.Errorf("parse %s of %s: %w", ocispec.ImageIndexFile, where, err)
	}
	return l, nil
}

func (l *layout) Close() error { return l.tree.Close() }

func blobPath(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// manifest implements contentSource.
func (l *layout) manifest(_ context.Context, d digest.Digest) ([]byte, error) {
	return readTreeFile(l.tree, blobPath(d), maxManifestSize)
}

// blob implements contentSource.
func (l *layout) blob(d ocispec.Descriptor) blob {
	return treeBlob(l.tree, blobPath(d.Digest), d.Digest, d.Size)
}

func treeBlob(t fileTree, name string, d digest.Digest, size int64) blob {
	return blob{digest: d, size: size, open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		f, _, err := t.open(name)
		if err != nil {
			return nil, err
		}
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}}
}

func (l *layout) find(ctx context.Context, name string, want wantPlatform) (*found, error) {
	var match []ocispec.Descriptor
	for _, d := range l.index.Manifests {
		if name == "" || name == d.Annotations[ocispec.AnnotationRefName] || name == d.Annotations[containerdName] {
			match = append(match, d)
		}
	}
	switch {
	case len(match) == 0:
		return nil, withHint(fmt.Errorf("%s has no image %q: %w", l.where, name, ErrNotFound), "it has: %s", strings.Join(l.tags(), ", "))
	case len(match) == 1:
		return l.get(ctx, match[0], want)
	}
	// Several of one name are platforms of one image, as in an index.
	if d, ok := bestPlatform(want.Platform, match); ok && sameName(match) {
		return l.get(ctx, d, want)
	}
	return nil, withHint(fmt.Errorf("%s has %d images", l.where, len(match)), "name one: %s", strings.Join(l.tags(), ", "))
}

func sameName(all []ocispec.Descriptor) bool {
	for _, d := range all {
		if d.Annotations[ocispec.AnnotationRefName] != all[0].Annotations[ocispec.AnnotationRefName] {
			return false
		}
	}
	return true
}

func (l *layout) tags() []string {
	var tags []string
	for _, d := range l.index.Manifests {
		if t := d.Annotations[ocispec.AnnotationRefName]; t != "" {
			tags = append(tags, t)
		}
	}
	return tags
}

func (l *layout) all(ctx context.Context, want wantPlatform) ([]*found, error) {
	var all []*found
	for _, d := range l.index.Manifests {
		f, err := l.get(ctx, d, want)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func (l *layout) get(ctx context.Context, d ocispec.Descriptor, want wantPlatform) (*found, error) {
	raw, err := readManifest(ctx, l, d)
	if err != nil {
		return nil, err
	}
	f, err := resolveManifest(ctx, l, raw, want)
	if err != nil {
		return nil, err
	}
	f.names = l.names(d)
	return f, nil
}

// containerdName is where containerd and docker's archives keep the whole name.
const containerdName = "io.containerd.image.name"

// names says what an image of a layout is to be called: by its whole name if it has one, or else localhost/DIR:TAG.
func (l *layout) names(d ocispec.Descriptor) []Reference {
	if r, err := ParseReference(d.Annotations[containerdName]); err == nil {
		return []Reference{r}
	}
	tag := d.Annotations[ocispec.AnnotationRefName]
	if strings.ContainsAny(tag, "/:") {
		if r, err := ParseReference(tag); err == nil {
			return []Reference{r}
		}
	}
	if tag == "" {
		tag = defaultTag
	}
	base := strings.ToLower(filepath.Base(l.where))
	for _, ext := range []string{".gz", ".zst", ".tar", ".tgz", ".oci"} {
		base = strings.TrimSuffix(base, ext)
	}
	if r, err := ParseReference("localhost/" + base + ":" + tag); err == nil {
		return []Reference{r}
	}
	return nil // found by its id
}
