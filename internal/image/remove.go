package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Removed says what a removal did.
type Removed struct {
	Untagged []string        // names, familiar form
	Deleted  []digest.Digest // images
	Layers   []digest.Digest // layers that no image is made of any more
	Freed    int64           // bytes
}

// Tag gives the image a further name, taking the name from the image that had it.
func (s *Store) Tag(ctx context.Context, ref, name string) (err error) {
	if err := s.writable(); err != nil {
		return err
	}
	target, err := parseTagName(name)
	if err != nil {
		return err
	}
	l, err := s.lockStore(ctx)
	if err != nil {
		return fmt.Errorf("tag %s: %w", ref, err)
	}
	defer func() { err = errors.Join(err, l.release()) }()
	id, _, err := s.lookup(ref)
	if err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	if err := s.writeFiles(s.nameFiles(id, target)...); err != nil {
		return fmt.Errorf("tag %s: %w", ref, s.explainSpace(err))
	}
	return nil
}

// parseTagName reads a name that may be given: one with a digest would be a promise, and one like an id could not be used.
func parseTagName(name string) (Reference, error) {
	r, err := ParseReference(name)
	if err != nil {
		return r, err
	}
	if r.Digest != "" {
		return r, fmt.Errorf("name %q has a digest; only a tag can be given", name)
	}
	if _, ok := fullID(name); ok {
		return r, fmt.Errorf("name %q looks like an image id", name)
	}
	return r, nil
}

// Remove takes a name away, and with the last name the image and what only it used. By id an image goes with all its
// names if it has one at most, or with force. ErrInUse if a container or another process uses the image.
func (s *Store) Remove(ctx context.Context, ref string, force bool) (r Removed, err error) {
	if err := s.writable(); err != nil {
		return r, err
	}
	l, err := s.lockStore(ctx)
	if err != nil {
		return r, fmt.Errorf("remove image %s: %w", ref, err)
	}
	defer func() { err = errors.Join(err, l.release()) }()
	id, name, err := s.lookup(ref)
	if err != nil {
		return r, fmt.Errorf("image %s: %w", ref, err)
	}
	if err := s.remove(id, name, force, &r); err != nil {
		return r, fmt.Errorf("remove image %s: %w", ref, err)
	}
	return r, nil
}

func (s *Store) remove(id digest.Digest, name Reference, force bool, r *Removed) error {
	all, err := s.names()
	if err != nil {
		return err
	}
	names := all[id]
	tags := 0
	for _, n := range names {
		if n.Digest == "" {
			tags++
		}
	}
	byName := name.Repository != ""
	switch {
	case byName && tags > 1, byName && name.Digest != "" && tags > 0:
		return s.untag(name, r)
	case !byName && tags > 1 && !force:
		return withHint(fmt.Errorf("it has %d names: %s", tags, familiarTags(names)), "remove it with all its names: urun rmi -f %s", id.Encoded()[:12])
	}
	used, err := s.usedByContainers()
	if err != nil {
		return err
	}
	if used[id] {
		return withHint(fmt.Errorf("a container uses it: %w", ErrInUse), "remove the container first: urun ps -a")
	}
	return s.deleteImage(id, names, r)
}

func familiarTags(names []Reference) string {
	var tags []string
	for _, n := range names {
		if n.Digest == "" {
			tags = append(tags, n.Familiar())
		}
	}
	slices.Sort(tags)
	return strings.Join(tags, ", ")
}

func (s *Store) usedByContainers() (map[digest.Digest]bool, error) {
	if s.inUse == nil {
		return nil, nil
	}
	used, err := s.inUse()
	if err != nil {
		return nil, fmt.Errorf("look for containers: %w", err)
	}
	return used, nil
}

func (s *Store) untag(name Reference, r *Removed) error {
	if err := os.Remove(s.namePath(name)); err != nil {
		return err
	}
	r.Untagged = append(r.Untagged, name.Familiar())
	return nil
}

// deleteImage removes the image and then what no other image uses. The store lock must be held.
func (s *Store) deleteImage(id digest.Digest, names []Reference, r *Removed) (err error) {
	l, free, err := lockForRemoval(s.configPath(id))
	if err != nil {
		return err
	}
	if !free {
		return fmt.Errorf("another process uses it: %w", ErrInUse)
	}
	defer func() { err = errors.Join(err, l.release()) }()
	// Names first: a name without an image is nothing, an image without a name is a dangling one.
	for _, n := range names {
		if err := s.untag(n, r); err != nil {
			return err
		}
	}
	if err := os.Remove(s.configPath(id)); err != nil {
		return err
	}
	r.Deleted = append(r.Deleted, id)
	return s.collect(r)
}

// collect removes layers and trees that no image is made of, except what a pull at work has pinned. The store lock must be held: no
// image appears meanwhile.
func (s *Store) collect(r *Removed) error {
	// A power loss must not bring back an image without its layers.
	if err := syncDir(s.path("images", "sha256")); err != nil {
		return err
	}
	if s.release != nil {
		if err := s.release(); err != nil {
			return err
		}
	}
	layers, trees, err := s.live()
	if err != nil {
		return err
	}
	if s.collected != nil {
		freed, err := s.collected(trees)
		r.Freed += freed
		if err != nil {
			return err
		}
	}
	if err := s.collectTrees(trees, r); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.path("layers", "sha256"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if layers[e.Name()] {
			continue
		}
		if err := s.removeLayer(digest.NewDigestFromEncoded(digest.SHA256, e.Name()), r); err != nil {
			return err
		}
	}
	return nil
}

// live lists the layers and trees, by their hex names, that the images are made of.
func (s *Store) live() (layers, trees map[string]bool, err error) {
	ids, err := s.ids()
	if err != nil {
		return nil, nil, err
	}
	layers, trees = make(map[string]bool), make(map[string]bool)
	for _, id := range ids {
		raw, err := os.ReadFile(s.configPath(id))
		if err != nil {
			return nil, nil, err
		}
		// What cannot be read may be made of anything, so nothing may go.
		img, err := s.describe(raw)
		if err != nil {
			return nil, nil, withHint(err, "urun image verify --repair")
		}
		trees[img.ChainID.Encoded()] = true
		for _, l := range img.Layers {
			layers[l.DiffID.Encoded()] = true
		}
	}
	return layers, trees, nil
}

// removeLayer removes a layer unless it is pinned, or somebody brings it in at this moment.
func (s *Store) removeLayer(d digest.Digest, r *Removed) (err error) {
	w, ok, err := s.tryWork(d.Encoded())
	if err != nil || !ok {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	l, free, err := lockForRemoval(s.layerData(d))
	if errors.Is(err, fs.ErrNotExist) {
		return s.discardLayer(w, d) // what a power loss left of one
	}
	if err != nil || !free {
		return err
	}
	defer func() { err = errors.Join(err, l.release()) }()
	size, err := diskUse(s.layerData(d), s.layerIndex(d))
	if err != nil {
		return err
	}
	if err := s.discardLayer(w, d); err != nil {
		return err
	}
	r.Layers = append(r.Layers, d)
	r.Freed += size
	return nil
}

// discardLayer removes what is at the place of a layer, if anything: out of sight in one step, so that nobody finds half of
// it. w is the work directory of the layer's key, under whose lock alone layers come and go.
func (s *Store) discardLayer(w *workDir, d digest.Digest) error {
	gone := filepath.Join(w.dir, "gone")
	err := os.Rename(s.layerDir(d), gone)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, os.RemoveAll(gone))
}

func (s *Store) collectTrees(live map[string]bool, r *Removed) error {
	entries, err := os.ReadDir(s.path("trees"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if live[e.Name()] {
			continue
		}
		path := s.path("trees", e.Name())
		l, free, err := lockForRemoval(path)
		if err != nil {
			return err
		}
		if !free {
			continue
		}
		size, err := diskUse(path)
		if err == nil {
			err = os.Remove(path)
		}
		if err = errors.Join(err, l.release()); err != nil {
			return err
		}
		r.Freed += size
	}
	return nil
}

func diskUse(paths ...string) (int64, error) {
	var sum int64
	for _, p := range paths {
		info, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a power loss took it
		}
		if err != nil {
			return 0, err
		}
		sum += info.Size()
	}
	return sum, nil
}

// Prune removes images without a tag, or with all every image, unless a container or another process uses it; and
// layers and trees that no image is made of, which broken-off pulls leave. If choose is not nil, only images that it
// says yes to.
func (s *Store) Prune(ctx context.Context, all bool, choose func(*Image) bool) (r Removed, err error) {
	if err := s.writable(); err != nil {
		return r, err
	}
	l, err := s.lockStore(ctx)
	if err != nil {
		return r, fmt.Errorf("prune images: %w", err)
	}
	defer func() { err = errors.Join(err, l.release()) }()
	if err := s.prune(all, choose, &r); err != nil {
		return r, fmt.Errorf("prune images: %w", err)
	}
	return r, nil
}

func (s *Store) prune(all bool, choose func(*Image) bool, r *Removed) error {
	used, err := s.usedByContainers()
	if err != nil {
		return err
	}
	names, err := s.names()
	if err != nil {
		return err
	}
	ids, err := s.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		tagged := slices.ContainsFunc(names[id], func(n Reference) bool { return n.Digest == "" })
		if used[id] || tagged && !all {
			continue
		}
		if choose != nil {
			img, err := s.Resolve(id.String())
			if err != nil || !choose(img) {
				continue // one that cannot be read is for image verify
			}
		}
		if err := s.deleteImage(id, names[id], r); err != nil && !errors.Is(err, ErrInUse) {
			return err
		}
	}
	return s.collect(r)
}
