package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Formats that Save writes.
const (
	FormatDockerArchive = "docker-archive" // with an OCI layout beside it, as docker 25 and later write
	FormatOCIArchive    = "oci-archive"
)

// Save writes images as one archive. Layers go as the uncompressed tars that the store has, so the images keep their ids.
func (s *Store) Save(ctx context.Context, w io.Writer, format string, refs ...string) error {
	if format == "" {
		format = FormatDockerArchive
	}
	if format != FormatDockerArchive && format != FormatOCIArchive {
		return fmt.Errorf("archive format %q: want %s or %s", format, FormatDockerArchive, FormatOCIArchive)
	}
	tw := tar.NewWriter(w)
	err := s.save(ctx, &tarSink{tw: tw, done: make(map[string]bool)}, format == FormatDockerArchive, refs)
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", strings.Join(refs, " "), err)
	}
	return nil
}

// SaveLayout writes images as an OCI image layout into a directory that is empty or not there.
func (s *Store) SaveLayout(ctx context.Context, dir string, refs ...string) error {
	err := s.saveLayout(ctx, dir, refs)
	if err != nil {
		return fmt.Errorf("save %s: %w", strings.Join(refs, " "), err)
	}
	return nil
}

func (s *Store) saveLayout(ctx context.Context, dir string, refs []string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o777); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, ocispec.ImageIndexFile)); err == nil {
		return fmt.Errorf("%s has images already", dir)
	}
	return s.save(ctx, dirSink{dir}, false, refs)
}

// sink takes the files of an archive. A file given twice is the same file.
type sink interface {
	put(name string, size int64, content io.Reader) error
}

type tarSink struct {
	tw   *tar.Writer
	done map[string]bool
}

func (t *tarSink) put(name string, size int64, content io.Reader) error {
	if t.done[name] {
		return nil
	}
	t.done[name] = true
	for i := range len(name) {
		if dir := name[:i+1]; name[i] == '/' && !t.done[dir] {
			t.done[dir] = true
			if err := t.tw.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
				return err
			}
		}
	}
	if err := t.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err := io.Copy(t.tw, content)
	return err
}

type dirSink struct{ dir string }

func (d dirSink) put(name string, _ int64, content io.Reader) error {
	path := filepath.Join(d.dir, filepath.FromSlash(name))
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// savedImage is one image to be saved, with all names that were asked for.
type savedImage struct {
	img   *Image
	names []Reference
}

func (s *Store) save(ctx context.Context, out sink, docker bool, refs []string) (err error) {
	images, err := s.toSave(refs)
	if err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var entries []dockerEntry
	for _, one := range images {
		release, err := s.Hold(one.img)
		if err != nil {
			return err
		}
		desc, err := saveImage(ctx, out, one.img)
		release()
		if err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, named(desc, one.names)...)
		entries = append(entries, entryFor(one))
	}
	if docker {
		if err := putJSON(out, dockerManifestFile, entries); err != nil {
			return err
		}
	}
	if err := putJSON(out, ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	return putJSON(out, ocispec.ImageIndexFile, index)
}

func (s *Store) toSave(refs []string) ([]*savedImage, error) {
	var images []*savedImage
	byID := make(map[digest.Digest]*savedImage)
	for _, ref := range refs {
		img, err := s.resolve(ref)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		one := byID[img.ID]
		if one == nil {
			one = &savedImage{img: img}
			byID[img.ID] = one
			images = append(images, one)
		}
		for _, n := range img.Names {
			name, err := ParseReference(n)
			if err != nil {
				return nil, err
			}
			one.names = append(one.names, name)
		}
	}
	return images, nil
}

func entryFor(one *savedImage) dockerEntry {
	e := dockerEntry{Config: blobPath(one.img.ID), RepoTags: []string{}}
	for _, n := range one.names {
		e.RepoTags = append(e.RepoTags, n.Familiar())
	}
	for _, l := range one.img.Layers {
		e.Layers = append(e.Layers, blobPath(l.DiffID))
	}
	return e
}

// named gives a manifest one entry of the index for each name.
func named(desc ocispec.Descriptor, names []Reference) []ocispec.Descriptor {
	if len(names) == 0 {
		return []ocispec.Descriptor{desc}
	}
	var all []ocispec.Descriptor
	for _, n := range names {
		d := desc
		d.Annotations = map[string]string{containerdName: n.String(), ocispec.AnnotationRefName: n.Tag}
		all = append(all, d)
	}
	return all
}

func saveImage(ctx context.Context, out sink, img *Image) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: img.ID, Size: int64(len(img.RawConfig))},
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range img.Layers {
		if err := putLayer(ctx, out, l); err != nil {
			return ocispec.Descriptor{}, err
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Size})
	}
	if err := put(out, blobPath(img.ID), img.RawConfig); err != nil {
		return ocispec.Descriptor{}, err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if img.Config.Architecture != "" {
		p := img.Platform
		d.Platform = &p
	}
	return d, put(out, blobPath(d.Digest), raw)
}

func putLayer(ctx context.Context, out sink, l Layer) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := os.Open(l.Data)
	if err != nil {
		return err
	}
	return errors.Join(out.put(blobPath(l.DiffID), l.Size, f), f.Close())
}

func put(out sink, name string, data []byte) error {
	return out.put(name, int64(len(data)), strings.NewReader(string(data)))
}

func putJSON(out sink, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return put(out, name, data)
}
