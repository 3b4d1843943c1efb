package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
)

// dockerManifestFile lists the images of a docker archive.
const dockerManifestFile = "manifest.json"

// dockerEntry is one image of manifest.json. Config and Layers are paths in the archive: old docker wrote
// <id>.json and <id>/layer.tar, since docker 25 they are blobs/sha256/<digest>.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

type dockerArchive struct {
	tree    fileTree
	where   string
	entries []dockerEntry
}

func openDockerArchive(tree fileTree, where string) (*dockerArchive, error) {
	raw, err := readTreeFile(tree, dockerManifestFile, maxManifestSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a docker archive: %w", where, err)
	}
	if err != nil {
		return nil, err
	}
	a := &dockerArchive{tree: tree, where: where}
	if err := json.Unmarshal(raw, &a.entries); err != nil {
		return nil, fmt.Errorf("parse %s of %s: %w", dockerManifestFile, where, err)
	}
	return a, nil
}

func (a *dockerArchive) Close() error { return a.tree.Close() }

func (a *dockerArchive) find(_ context.Context, name string, _ wantPlatform) (*found, error) {
	if name == "" {
		if len(a.entries) != 1 {
			return nil, withHint(fmt.Errorf("%s has %d images", a.where, len(a.entries)), "name one: %s", strings.Join(a.tags(), ", "))
		}
		return a.get(a.entries[0])
	}
	wanted, err := ParseReference(name)
	if err != nil {
		return nil, err
	}
	for _, e := range a.entries {
		for _, tag := range e.RepoTags {
			if r, err := ParseReference(tag); err == nil && r == wanted {
				return a.get(e)
			}
		}
	}
	return nil, withHint(fmt.Errorf("%s has no image %q: %w", a.where, name, ErrNotFound), "it has: %s", strings.Join(a.tags(), ", "))
}

func (a *dockerArchive) tags() []string {
	var tags []string
	for _, e := range a.entries {
		tags = append(tags, e.RepoTags...)
	}
	return tags
}

func (a *dockerArchive) all(context.Context, wantPlatform) ([]*found, error) {
	var all []*found
	for _, e := range a.entries {
		f, err := a.get(e)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func (a *dockerArchive) get(e dockerEntry) (*found, error) {
	config, err := readTreeFile(a.tree, e.Config, maxConfigSize)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	f := &found{config: config}
	for _, name := range e.Layers {
		r, size, err := a.tree.open(name)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", name, err)
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
		f.layers = append(f.layers, treeBlob(a.tree, name, blobDigest(name), size))
	}
	for _, tag := range e.RepoTags {
		r, err := ParseReference(tag)
		if err != nil {
			return nil, err
		}
		f.names = append(f.names, r)
	}
	return f, nil
}

// blobDigest is the digest that a path of the new layout promises; old paths promise nothing.
func blobDigest(name string) digest.Digest {
	hex, ok := strings.CutPrefix(name, "blobs/sha256/")
	if id, full := fullID(hex); ok && full {
		return id
	}
	return ""
}
