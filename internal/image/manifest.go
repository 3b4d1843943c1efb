package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of docker's image manifest, version 2, that are not OCI's.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1"
)

// maxManifestSize is what docker and the distribution project allow.
const maxManifestSize = 4 << 20

// maxIndexDepth bounds indexes of indexes.
const maxIndexDepth = 4

// blob is content at a source.
type blob struct {
	digest digest.Digest // empty if the source does not say; the diffID is then the only check
	size   int64         // -1 if not known
	// open reads from an offset. What comes may be anything; who reads verifies.
	open func(ctx context.Context, offset int64) (io.ReadCloser, error)
}

// found is an image at a source: everything but its layers' bytes.
type found struct {
	names  []Reference // with tag or digest
	config []byte
	layers []blob
}

// contentSource gives content by descriptor.
type contentSource interface {
	// manifest reads a manifest or index whole, at most maxManifestSize. The caller verifies.
	manifest(ctx context.Context, d digest.Digest) ([]byte, error)
	blob(d ocispec.Descriptor) blob
}

// anyManifest is what a manifest or an index may hold.
type anyManifest struct {
	specs.Versioned
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Config       *ocispec.Descriptor  `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	FSLayers     json.RawMessage      `json:"fsLayers"` // schema 1
}

// resolveManifest follows indexes from raw to the image for the platform and reads its config.
func resolveManifest(ctx context.Context, src contentSource, raw []byte, want wantPlatform) (*found, error) {
	m, err := followIndexes(ctx, src, raw, want.Platform)
	if err != nil {
		return nil, err
	}
	if err := checkImageManifest(m); err != nil {
		return nil, err
	}
	config, err := readBlob(ctx, src.blob(*m.Config), maxConfigSize)
	if err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	f := &found{config: config}
	for _, d := range m.Layers {
		f.layers = append(f.layers, src.blob(d))
	}
	return f, nil
}

func followIndexes(ctx context.Context, src contentSource, raw []byte, want ocispec.Platform) (*anyManifest, error) {
	for range maxIndexDepth {
		m := new(anyManifest)
		if err := json.Unmarshal(raw, m); err != nil {
			return nil, fmt.Errorf("parse manifest: %w", err)
		}
		isIndex := m.MediaType == ocispec.MediaTypeImageIndex || m.MediaType == dockerManifestList || m.MediaType == "" && m.Manifests != nil
		if !isIndex {
			return m, nil
		}
		if m.Config != nil || m.Layers != nil {
			// A document that is both could mean different images to different readers (CVE-2021-41190).
			return nil, fmt.Errorf("index has fields of an image manifest: %w", ErrUnsupported)
		}
		d, err := pickManifest(want, m.Manifests)
		if err != nil {
			return nil, err
		}
		if raw, err = readManifest(ctx, src, d); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("indexes nested more than %d deep: %w", maxIndexDepth-1, ErrUnsupported)
}

func pickManifest(want ocispec.Platform, all []ocispec.Descriptor) (ocispec.Descriptor, error) {
	if d, ok := bestPlatform(want, all); ok {
		return d, nil
	}
	if len(all) == 1 && all[0].Platform == nil {
		return all[0], nil
	}
	var have []string
	for _, d := range all {
		if d.Platform != nil && d.Platform.OS != "unknown" {
			have = append(have, FormatPlatform(*d.Platform))
		}
	}
	if len(have) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("index names no platform: %w", ErrUnsupported)
	}
	return ocispec.Descriptor{}, withHint(fmt.Errorf("no image for platform %s", FormatPlatform(want)),
		"choose with --platform: %s", strings.Join(have, ", "))
}

// readManifest reads and verifies what a descriptor points to.
func readManifest(ctx context.Context, src contentSource, d ocispec.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("manifest digest %q: %w", d.Digest, err)
	}
	if d.Size > maxManifestSize {
		return nil, fmt.Errorf("manifest %s has %d bytes, more than %d", d.Digest, d.Size, maxManifestSize)
	}
	raw, err := src.manifest(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	return raw, verifyBytes(raw, d.Digest)
}

func verifyBytes(data []byte, want digest.Digest) error {
	if got := want.Algorithm().FromBytes(data); got != want {
		return fmt.Errorf("content is %s, not %s: %w", got, want, ErrDigest)
	}
	return nil
}

func checkImageManifest(m *anyManifest) error {
	switch {
	case m.FSLayers != nil || strings.HasPrefix(m.MediaType, dockerSchema1) || m.SchemaVersion == 1:
		return withHint(fmt.Errorf("docker schema 1 manifest: %w", ErrUnsupported), "push the image again with a current docker, podman or skopeo")
	case m.MediaType != "" && m.MediaType != ocispec.MediaTypeImageManifest && m.MediaType != dockerManifest:
		return fmt.Errorf("manifest type %q: %w", m.MediaType, ErrUnsupported)
	case m.Config == nil:
		return errors.New("manifest names no config")
	case m.Manifests != nil:
		return fmt.Errorf("image manifest has fields of an index: %w", ErrUnsupported)
	}
	if t := m.Config.MediaType; t != ocispec.MediaTypeImageConfig && t != dockerConfig {
		kind := m.ArtifactType
		if kind == "" {
			kind = t
		}
		return fmt.Errorf("not a container image but an artifact of type %q: %w", kind, ErrUnsupported)
	}
	if err := checkDescriptor(*m.Config, maxConfigSize); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	for i, d := range m.Layers {
		if err := checkDescriptor(d, 0); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		if err := checkLayerType(d.MediaType); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor, most int64) error {
	if _, err := parseDigest(d.Digest.String()); err != nil {
		return err
	}
	if d.Size < 0 || most > 0 && d.Size > most {
		return fmt.Errorf("size %d of %s is out of range", d.Size, d.Digest)
	}
	return nil
}

// checkLayerType refuses what is no plain tar. Which compression it is shows in the bytes.
func checkLayerType(t string) error {
	switch {
	case strings.Contains(t, "+encrypted"):
		return fmt.Errorf("encrypted layer (%s): %w", t, ErrUnsupported)
	case t == dockerForeignLayer, strings.Contains(t, "nondistributable"):
		return fmt.Errorf("foreign layer (%s), which the registry does not have: %w", t, ErrUnsupported)
	case strings.Contains(t, "diff.tar"), strings.Contains(t, "layer.v1.tar"):
		return nil
	default:
		return fmt.Errorf("layer type %q: %w", t, ErrUnsupported)
	}
}

// readBlob reads a small blob whole and verifies it.
func readBlob(ctx context.Context, b blob, most int64) ([]byte, error) {
	r, err := b.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	data, err := readAtMost(r, most)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if b.size >= 0 && int64(len(data)) != b.size {
		return nil, fmt.Errorf("%s has %d bytes, not %d: %w", b.digest, len(data), b.size, ErrDigest)
	}
	if b.digest == "" {
		return data, nil
	}
	return data, verifyBytes(data, b.digest)
}

func readAtMost(r io.Reader, most int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("more than %d bytes", most)
	}
	return data, nil
}

// wantPlatform is the platform that an image is wanted for, and whether somebody asked for it.
type wantPlatform struct {
	ocispec.Platform
	explicit bool
}

// check compares an image's own word on its platform, for images that came without an index.
func (w wantPlatform) check(img *Image) error {
	if img.Config.OS != "" && img.Config.OS != "linux" {
		return fmt.Errorf("image is for %s: %w", FormatPlatform(img.Platform), ErrUnsupported)
	}
	if w.explicit && img.Config.Architecture != "" && platformRank(w.Platform, img.Platform) == 0 {
		return fmt.Errorf("image is for platform %s, not %s", FormatPlatform(img.Platform), FormatPlatform(w.Platform))
	}
	return nil
}
