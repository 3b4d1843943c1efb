package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Image is an image of the store, ready to be mounted.
type Image struct {
	ID        digest.Digest // digest of RawConfig
	Names     []string      // canonical references with a tag; Resolve gives only the one that was asked for
	Digests   []string      // canonical references with a manifest digest; Resolve gives only the one that was asked for
	Config    ocispec.Image
	RawConfig []byte // as published, with what the OCI type does not know (docker's Healthcheck, OnBuild, Shell)
	Layers    []Layer
	Tree      string // path of the merged tree
	ChainID   digest.Digest
	Platform  ocispec.Platform
	Size      int64     // bytes of the uncompressed layers
	Created   time.Time // by whom built it; zero if it does not say
}

// Layer is one layer of an image, the lowest first.
type Layer struct {
	DiffID digest.Digest
	Data   string // path of the uncompressed tar
	Index  string // path of its fuseunion index
	Size   int64  // bytes of Data
}

// maxConfigSize bounds what is read into memory; docker bounds manifests by the same.
const maxConfigSize = 4 << 20

// Resolve finds an image by name[:tag][@digest], id or the beginning of an id. It reads two small files.
func (s *Store) Resolve(ref string) (*Image, error) {
	img, err := s.resolve(ref)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

func (s *Store) resolve(ref string) (*Image, error) {
	id, name, err := s.lookup(ref)
	if err != nil {
		return nil, err
	}
	img, err := s.load(id)
	if err == nil {
		err = s.ensureTree(context.Background(), img)
	}
	if err != nil {
		// The name was read just before the image was removed, which takes its config first.
		if _, serr := os.Stat(s.configPath(id)); errors.Is(serr, fs.ErrNotExist) {
			return nil, ErrNotFound
		}
		return nil, err
	}
	switch {
	case name.Digest != "":
		img.Digests = []string{name.String()}
	case name.Tag != "":
		img.Names = []string{name.String()}
	}
	return img, nil
}

// lookup finds the id that ref stands for and, if ref is a name, that name.
func (s *Store) lookup(ref string) (digest.Digest, Reference, error) {
	if _, _, ok := splitTransport(ref); ok {
		return "", Reference{}, ErrNotFound // a place outside the store, not a name with a tag
	}
	ref = strings.TrimPrefix(ref, "docker://")
	if id, ok := fullID(ref); ok {
		if _, err := os.Stat(s.configPath(id)); err == nil {
			return id, Reference{}, nil
		}
		return "", Reference{}, ErrNotFound
	}
	for _, name := range lookupNames(ref) {
		id, err := s.readName(name)
		if err == nil {
			return id, name, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", Reference{}, err
		}
	}
	id, err := s.lookupShortID(ref)
	if errors.Is(err, ErrNotFound) && strings.ToLower(ref) != ref {
		if _, perr := ParseReference(ref); perr != nil {
			return "", Reference{}, perr
		}
	}
	return id, Reference{}, err
}

// lookupNames lists the names that ref may mean: itself and, for one without a registry, the same under localhost, where
// images that came from no registry are.
func lookupNames(ref string) []Reference {
	name, err := ParseReference(ref)
	if err != nil {
		return nil
	}
	if name.Digest != "" {
		name.Tag = "" // what a digest names does not change with a tag beside it
	}
	names := []Reference{name}
	if name.Registry == defaultRegistry && !strings.HasPrefix(ref, defaultRegistry) {
		local := name
		local.Registry, local.Repository = "localhost", strings.TrimPrefix(name.Repository, defaultNamespace+"/")
		names = append(names, local)
	}
	return names
}

func fullID(ref string) (digest.Digest, bool) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if len(hex) != 64 || !isLowerHex(hex) {
		return "", false
	}
	return digest.NewDigestFromEncoded(digest.SHA256, hex), true
}

func isLowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isHex(c) || c >= 'A' && c <= 'F' {
			return false
		}
	}
	return s != ""
}

func (s *Store) lookupShortID(ref string) (digest.Digest, error) {
	prefix := strings.TrimPrefix(ref, "sha256:")
	if !isLowerHex(prefix) {
		return "", ErrNotFound
	}
	ids, err := s.ids()
	if err != nil {
		return "", err
	}
	var found digest.Digest
	for _, id := range ids {
		if !strings.HasPrefix(id.Encoded(), prefix) {
			continue
		}
		if found != "" {
			return "", ErrAmbiguous
		}
		found = id
	}
	if found == "" {
		return "", ErrNotFound
	}
	return found, nil
}

// ids lists the images of the store.
func (s *Store) ids() ([]digest.Digest, error) {
	entries, err := os.ReadDir(s.path("images", "sha256"))
	if err != nil {
		return nil, err
	}
	ids := make([]digest.Digest, 0, len(entries))
	for _, e := range entries {
		if id, ok := fullID(e.Name()); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// load reads the image with this id. It checks that the layers are there, not what is in them.
func (s *Store) load(id digest.Digest) (*Image, error) {
	raw, err := os.ReadFile(s.configPath(id))
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(raw) != id {
		return nil, withHint(fmt.Errorf("%w: config of %s: %w", ErrIncomplete, id, ErrDigest), "pull the image again")
	}
	img, err := s.describe(raw)
	if err != nil {
		return nil, err
	}
	for i := range img.Layers {
		l := &img.Layers[i]
		info, err := os.Stat(l.Data)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("layer %s is missing", l.DiffID) // fs.ErrNotExist would say that there is no such image
		}
		if err != nil {
			return nil, withHint(fmt.Errorf("%w: %w", ErrIncomplete, err), "pull the image again")
		}
		l.Size = info.Size()
		img.Size += l.Size
	}
	return img, nil
}

// describe makes an Image of a config, without looking at the layers.
func (s *Store) describe(raw []byte) (*Image, error) {
	img := &Image{ID: digest.FromBytes(raw), RawConfig: raw}
	if err := json.Unmarshal(raw, &img.Config); err != nil {
		return nil, fmt.Errorf("image config %s: %w", img.ID, err)
	}
	if t := img.Config.RootFS.Type; t != "" && t != "layers" {
		return nil, fmt.Errorf("image config %s: rootfs type %q: %w", img.ID, t, ErrUnsupported)
	}
	for _, d := range img.Config.RootFS.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return nil, fmt.Errorf("image config %s: diff id %q: %w", img.ID, d, ErrUnsupported)
		}
		img.Layers = append(img.Layers, Layer{DiffID: d, Data: s.layerData(d), Index: s.layerIndex(d)})
	}
	img.Platform = normalPlatform(img.Config.Platform)
	img.ChainID = chainID(img.Config.RootFS.DiffIDs)
	img.Tree = s.treePath(img.ChainID)
	if img.Config.Created != nil {
		img.Created = *img.Config.Created
	}
	return img, nil
}

// chainID names a stack of layers: the OCI image spec's ChainID, and the digest of nothing for no layers.
func chainID(diffIDs []digest.Digest) digest.Digest {
	if len(diffIDs) == 0 {
		return digest.FromBytes(nil)
	}
	chain := diffIDs[0]
	for _, d := range diffIDs[1:] {
		chain = digest.FromString(chain.String() + " " + d.String())
	}
	return chain
}

// A name's file is called by the name itself with '/' written as '+', which no name contains. One too
// long for a file name is called by its digest.
func (s *Store) namePath(name Reference) string {
	file := strings.ReplaceAll(name.String(), "/", "+")
	if len(file) > 250 {
		file = "+" + digest.FromString(name.String()).Encoded()
	}
	return s.path("images", "names", file)
}

// A name's file holds the id and, for the long ones, the name.
func (s *Store) readName(name Reference) (digest.Digest, error) {
	id, _, err := readNameFile(s.namePath(name))
	return id, err
}

func readNameFile(path string) (digest.Digest, Reference, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", Reference{}, err
	}
	idText, nameText, _ := strings.Cut(strings.TrimSuffix(string(data), "\n"), "\n")
	id, ok := fullID(idText)
	if !ok {
		return "", Reference{}, fmt.Errorf("%s: not an image id", path)
	}
	name, err := ParseReference(nameText)
	if err != nil {
		return "", Reference{}, fmt.Errorf("%s: %w", path, err)
	}
	return id, name, nil
}

// nameFiles gives the files to be written so that names stand for id, away from what they stood for before.
func (s *Store) nameFiles(id digest.Digest, names ...Reference) (files []newFile) {
	for _, name := range names {
		if old, err := s.readName(name); err == nil && old == id {
			continue
		}
		files = append(files, newFile{s.namePath(name), fmt.Appendf(nil, "%s\n%s\n", id, name)})
	}
	return files
}

// configFiles gives the file to be written so that an image is visible by its id.
func (s *Store) configFiles(img *Image) []newFile {
	if old, err := os.ReadFile(s.configPath(img.ID)); err == nil && digest.FromBytes(old) == img.ID {
		return nil
	}
	return []newFile{{s.configPath(img.ID), img.RawConfig}}
}

// names reads all names of the store.
func (s *Store) names() (map[digest.Digest][]Reference, error) {
	dir := s.path("images", "names")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make(map[digest.Digest][]Reference)
	for _, e := range entries {
		id, name, err := readNameFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the directory was read
		}
		if err != nil {
			return nil, withHint(err, "urun image verify --repair")
		}
		names[id] = append(names[id], name)
	}
	return names, nil
}

// List gives every image of the store, with all its names. Images that cannot be read are left out; the error tells of them.
func (s *Store) List() ([]*Image, error) {
	names, err := s.names()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	ids, err := s.ids()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	images := make([]*Image, 0, len(ids))
	var errs []error
	for _, id := range ids {
		img, err := s.load(id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed since the directory was read
		case err != nil:
			errs = append(errs, fmt.Errorf("image %s: %w", id, err))
		default:
			img.addNames(names[id])
			images = append(images, img)
		}
	}
	return images, errors.Join(errs...)
}

// Inspect is Resolve with all names.
func (s *Store) Inspect(ref string) (*Image, error) {
	img, err := s.Resolve(ref)
	if err != nil {
		return nil, err
	}
	names, err := s.names()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	img.Names, img.Digests = nil, nil
	img.addNames(names[img.ID])
	return img, nil
}

func (img *Image) addNames(names []Reference) {
	for _, n := range names {
		if n.Digest != "" {
			img.Digests = append(img.Digests, n.String())
		} else {
			img.Names = append(img.Names, n.String())
		}
	}
}

// Hold keeps rmi and prune, also of other processes, away from an image until release is called. It fails with
// ErrNotFound if the image has been removed since it was resolved.
func (s *Store) Hold(img *Image) (release func(), err error) {
	f, err := s.HoldFile(img)
	if err != nil {
		return nil, err
	}
	// Closing a file that was only read loses nothing.
	return func() { _ = f.Close() }, nil
}

// HoldFile is Hold by a file: the image is held until the last process that has it, by inheritance or by SCM_RIGHTS,
// closes it.
func (s *Store) HoldFile(img *Image) (*os.File, error) {
	l, err := pin(s.configPath(img.ID))
	switch {
	case s.readOnly && (errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP)):
		// A file system without locks; whoever shares a store on one must not prune it meanwhile.
		return os.Open(s.configPath(img.ID))
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("hold image %s: %w", img.ID, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("hold image %s: %w", img.ID, err)
	}
	return l.f, nil
}
