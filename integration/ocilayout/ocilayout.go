// Package ocilayout writes images as OCI image layouts, from tar entries made by the caller. It is for images under
// test: it writes what it is told, also what a well-behaved builder would not.
package ocilayout

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Epoch is the time stamp of all that has no better one, so that equal contents give equal digests.
var Epoch = time.Date(2024, 5, 17, 12, 0, 0, 0, time.UTC)

// A Layer writes an uncompressed tar, its end included.
type Layer func(io.Writer) error

// Entries makes a layer of what fill writes.
func Entries(fill func(*tar.Writer) error) Layer {
	return func(w io.Writer) error {
		tw := tar.NewWriter(w)
		if err := fill(tw); err != nil {
			return err
		}
		return tw.Close()
	}
}

// Options are the parts of an image other than its layers.
type Options struct {
	// Tag is the reference name of the manifest in index.json.
	Tag string
	// Architecture is a GOARCH.
	Architecture string
	// Config is the image's configuration: entrypoint, environment and the like.
	Config v1.ImageConfig
	// GzipLevel is one of compress/gzip's levels; 0 writes uncompressed layers.
	GzipLevel int
}

// Write makes the layout in dir, which must not exist or be empty, and returns the digest of the manifest.
func Write(dir string, opt Options, layers ...Layer) (digest.Digest, error) {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return "", err
	}
	img := v1.Image{Created: &Epoch, Config: opt.Config}
	img.Architecture, img.OS = opt.Architecture, "linux"
	img.RootFS.Type = "layers"

	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for i, layer := range layers {
		desc, diffID, err := writeLayer(blobs, opt.GzipLevel, layer)
		if err != nil {
			return "", fmt.Errorf("layer %d: %w", i+1, err)
		}
		manifest.Layers = append(manifest.Layers, desc)
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, diffID)
		img.History = append(img.History, v1.History{Created: &Epoch, CreatedBy: fmt.Sprintf("layer %d", i+1)})
	}

	config, err := writeJSON(blobs, v1.MediaTypeImageConfig, img)
	if err != nil {
		return "", err
	}
	manifest.Config = config
	desc, err := writeJSON(blobs, v1.MediaTypeImageManifest, manifest)
	if err != nil {
		return "", err
	}
	if opt.Tag != "" {
		desc.Annotations = map[string]string{v1.AnnotationRefName: opt.Tag}
	}
	desc.Platform = &v1.Platform{Architecture: opt.Architecture, OS: "linux"}

	index := v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{desc},
	}
	if err := putJSON(filepath.Join(dir, v1.ImageIndexFile), index); err != nil {
		return "", err
	}
	return desc.Digest, putJSON(filepath.Join(dir, v1.ImageLayoutFile), v1.ImageLayout{Version: v1.ImageLayoutVersion})
}

// writeLayer streams a layer into a blob, hashing both what is compressed and what is not.
func writeLayer(blobs string, level int, layer Layer) (desc v1.Descriptor, diffID digest.Digest, err error) {
	f, err := os.CreateTemp(blobs, ".layer-")
	if err != nil {
		return desc, "", err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()

	blob, diff := sha256.New(), sha256.New()
	out := io.MultiWriter(f, blob)
	desc.MediaType = v1.MediaTypeImageLayer
	finish := func() error { return nil }
	if level != 0 {
		desc.MediaType = v1.MediaTypeImageLayerGzip
		gz, err := gzip.NewWriterLevel(out, level)
		if err != nil {
			return desc, "", err
		}
		out, finish = gz, gz.Close
	}
	if err := layer(io.MultiWriter(out, diff)); err != nil {
		return desc, "", err
	}
	if err := finish(); err != nil {
		return desc, "", err
	}
	if desc.Size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return desc, "", err
	}
	if err := f.Chmod(0o644); err != nil {
		return desc, "", err
	}
	desc.Digest = sum(blob)
	return desc, sum(diff), os.Rename(f.Name(), filepath.Join(blobs, desc.Digest.Encoded()))
}

func sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

func writeJSON(blobs, mediaType string, v any) (v1.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := digest.FromBytes(data)
	desc := v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	return desc, os.WriteFile(filepath.Join(blobs, d.Encoded()), data, 0o644)
}

func putJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// CopyLayers writes the entries of some layers, by their index from 0, of the first image of a layout to tw.
func CopyLayers(tw *tar.Writer, dir string, layers ...int) error {
	var index v1.Index
	if err := getJSON(filepath.Join(dir, v1.ImageIndexFile), &index); err != nil {
		return err
	}
	var manifest v1.Manifest
	if err := getJSON(blob(dir, index.Manifests[0].Digest), &manifest); err != nil {
		return err
	}
	for _, i := range layers {
		if err := copyLayer(tw, blob(dir, manifest.Layers[i].Digest)); err != nil {
			return err
		}
	}
	return nil
}

func copyLayer(tw *tar.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return CopyTar(tw, gz)
}

// CopyTar writes the entries of a tar to tw, without the end.
func CopyTar(tw *tar.Writer, r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
}

func blob(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func getJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
