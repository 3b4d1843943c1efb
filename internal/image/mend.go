package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/urun-dev/urun/fuseunion"
)

// isDamage says that an index or a tree is not what was written, or is gone: both can be made again.
func isDamage(err error) bool {
	return errors.Is(err, fuseunion.ErrDamaged) || errors.Is(err, fs.ErrNotExist)
}

// OpenTree opens the merged tree of an image after checking all of it; the contents of files are checked when they are read. What is
// damaged is made again from the layers, and mended says so in a sentence; "" is the usual case.
func (s *Store) OpenTree(ctx context.Context, img *Image) (tree *fuseunion.Tree, mended string, err error) {
	tree, err = openWhole(img)
	if err == nil || !isDamage(err) {
		return tree, "", err
	}
	was := err
	if err := s.mend(ctx, img); err != nil {
		return nil, "", fmt.Errorf("image %s: %w", img.ShortID(), err)
	}
	if tree, err = openWhole(img); err != nil {
		// The tree is as the indexes say, so it is a layer's data that is not.
		return nil, "", withHint(fmt.Errorf("image %s: %w", img.ShortID(), err), "remove what is damaged with `urun image verify --repair %s`, and pull the image again", img.ShortID())
	}
	return tree, fmt.Sprintf("image %s: %v; it was made again from the layers", img.ShortID(), was), nil
}

func openWhole(img *Image) (*fuseunion.Tree, error) {
	data := make([]string, len(img.Layers))
	for i, l := range img.Layers {
		data[i] = l.Data
	}
	tree, err := fuseunion.OpenTree(img.Tree, data)
	if err != nil {
		return nil, err
	}
	if err := tree.Verify(); err != nil {
		return nil, errors.Join(fmt.Errorf("tree %s: %w", img.Tree, err), tree.Close())
	}
	return tree, nil
}

// mend makes the tree of an image again, unless another process has done so meanwhile.
func (s *Store) mend(ctx context.Context, img *Image) (err error) {
	if err := s.writable(); err != nil {
		return fmt.Errorf("%w; the merged tree is damaged", err)
	}
	w, err := s.work(ctx, "tree-"+img.ChainID.Encoded(), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if tree, err := openWhole(img); err == nil {
		return tree.Close()
	}
	l, err := s.writeTree(ctx, w, img)
	if err != nil {
		return err
	}
	return l.release()
}

// writeTree merges the layers of an image in w and puts the tree in its place, whatever is there.
func (s *Store) writeTree(ctx context.Context, w *workDir, img *Image) (*lockFile, error) {
	tmp := filepath.Join(w.dir, "tree")
	err := mergeTo(tmp, img)
	if isDamage(err) {
		if err := s.mendIndexes(ctx, img); err != nil {
			return nil, fmt.Errorf("merge layers of %s: %w", img.ShortID(), err)
		}
		err = mergeTo(tmp, img)
	}
	if err != nil {
		return nil, fmt.Errorf("merge layers of %s: %w", img.ShortID(), err)
	}
	return s.publish(tmp, tmp, img.Tree)
}

func mergeTo(path string, img *Image) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	err = fuseunion.MergeTree(img.mergeLayers(), f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (img *Image) mergeLayers() []fuseunion.Layer {
	layers := make([]fuseunion.Layer, len(img.Layers))
	for i, l := range img.Layers {
		layers[i] = fuseunion.Layer{Data: l.Data, Index: l.Index}
	}
	return layers
}

// mendIndexes makes the indexes of an image's layers again that are damaged.
func (s *Store) mendIndexes(ctx context.Context, img *Image) error {
	for _, l := range img.Layers {
		if err := fuseunion.CheckIndex(l.Index); err == nil {
			continue
		} else if !isDamage(err) {
			return err
		}
		if err := s.reindex(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// reindex makes the index of a layer again from its data, if that is still what the diffID says.
func (s *Store) reindex(ctx context.Context, l Layer) (err error) {
	w, err := s.work(ctx, "index-"+l.DiffID.Encoded(), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	data, err := os.Open(l.Data)
	if err != nil {
		return err
	}
	defer data.Close()
	tmp := filepath.Join(w.dir, "index")
	index, err := createFile(tmp)
	if err != nil {
		return err
	}
	hash := sha256.New()
	_, err = fuseunion.IndexTar(io.TeeReader(contextReader{ctx, data}, hash), io.Discard, index, fuseunion.IndexOptions{})
	if ctx.Err() == nil && !isLocal(err) {
		// Whatever was wrong inside, wrong content is the cause.
		if _, cerr := io.Copy(hash, data); cerr != nil {
			err = cerr
		} else if got := digest.NewDigestFromBytes(digest.SHA256, hash.Sum(nil)); got != l.DiffID {
			err = withHint(fmt.Errorf("%w: its content is %s", ErrDigest, got), "remove it with `urun image verify --repair`, and pull the image again")
		}
	}
	if err == nil {
		err = index.Sync()
	}
	if err = errors.Join(err, index.Close()); err != nil {
		return fmt.Errorf("index layer %s: %w", l.DiffID, s.explainSpace(err))
	}
	if err := os.Rename(tmp, l.Index); err != nil {
		return err
	}
	return syncDir(filepath.Dir(l.Index))
}

// DamageNotes says what of an image's contents turned out to be damaged while it was read, a line each, for those whose
// programs were told no more than an input/output error.
func (img *Image) DamageNotes() (notes []string) {
	for _, l := range img.Layers {
		if n := fuseunion.Noted(l.Data); n != "" {
			notes = append(notes, fmt.Sprintf("image %s: layer %.19s: %s", img.ShortID(), l.DiffID, n))
		}
	}
	return notes
}
