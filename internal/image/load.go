package image

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// LoadOptions say how to load.
type LoadOptions struct {
	Platform string      // of an index in the archive; "" is this machine's
	Progress func(Event) // called by one goroutine at a time; may be nil
}

// Load brings every image of an archive into the store: a docker archive or an OCI archive, plain or compressed.
// The archive is read where it lies if it is an uncompressed file, or else through a temporary copy. Load takes f over.
func (s *Store) Load(ctx context.Context, f *os.File, opt LoadOptions) ([]*Image, error) {
	images, err := s.loadArchive(ctx, f, opt)
	if err != nil {
		return images, fmt.Errorf("load %s: %w", f.Name(), s.explainSpace(err))
	}
	return images, nil
}

func (s *Store) loadArchive(ctx context.Context, f *os.File, opt LoadOptions) (images []*Image, err error) {
	want, err := parseWant(opt.Platform)
	if err == nil {
		err = s.writable()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	src, err := s.readArchive(f, info, f.Name(), "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	all, err := src.all(ctx, want)
	if err != nil {
		return nil, err
	}
	rep := &reporter{fn: opt.Progress}
	for _, f := range all {
		img, err := s.add(ctx, f, want, rep)
		if err != nil {
			return images, err
		}
		images = append(images, img)
	}
	return images, nil
}
