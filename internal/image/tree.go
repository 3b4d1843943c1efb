package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ensureTree makes the merged tree of an image if it is not there.
func (s *Store) ensureTree(ctx context.Context, img *Image) error {
	if _, err := os.Stat(img.Tree); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.readOnly {
		return withHint(fmt.Errorf("merged tree of %s is missing", img.ID), "the owner of %s has to pull the image again", s.root)
	}
	l, err := s.pinnedTree(ctx, img)
	if err != nil {
		return err
	}
	return l.release()
}

// pinnedTree makes the merged tree unless it is there, and pins it.
func (s *Store) pinnedTree(ctx context.Context, img *Image) (*lockFile, error) {
	if l, err := pin(img.Tree); !errors.Is(err, fs.ErrNotExist) {
		return l, err
	}
	w, err := s.work(ctx, "tree-"+img.ChainID.Encoded(), nil)
	if err != nil {
		return nil, err
	}
	l, err := pin(img.Tree)
	if errors.Is(err, fs.ErrNotExist) {
		l, err = s.writeTree(ctx, w, img)
	}
	return l, errors.Join(err, w.close())
}

// publish renames from to to and makes that survive a crash. pinned is the file below from that is pinned, before anyone can see it.
func (s *Store) publish(pinned, from, to string) (*lockFile, error) {
	f, err := os.Open(pinned)
	if err != nil {
		return nil, err
	}
	l := &lockFile{f}
	if _, err = tryFlock(f, unix.LOCK_SH); err == nil {
		err = os.Rename(from, to)
	}
	if err == nil {
		err = syncDir(filepath.Dir(to))
	}
	if err != nil {
		return nil, errors.Join(err, l.release())
	}
	return l, nil
}
