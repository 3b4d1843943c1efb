package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/go-units"

	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

// containerSize is how many bytes a container has written, and how many its image
// has.
type containerSize struct{ Written, Image int64 }

// String is docker's form.
func (s containerSize) String() string {
	return fmt.Sprintf("%s (virtual %s)", humanSize(s.Written), humanSize(s.Written+s.Image))
}

func humanSize(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// containerSizes measures containers, by id. One that goes meanwhile is left out.
func (a *App) containerSizes(st *state.Store, recs []*state.Record) (map[string]containerSize, error) {
	images, err := a.imageSizes()
	if err != nil {
		return nil, err
	}
	sizes := map[string]containerSize{}
	for _, rec := range recs {
		upper := filepath.Join(st.Dir(rec.ID), "upper")
		there := func() bool {
			_, err := os.Lstat(upper)
			return !errors.Is(err, fs.ErrNotExist)
		}
		if !there() {
			continue
		}
		written, err := monitor.Usage(executable(), launch.RecordMap(rec), []string{upper})
		if err != nil && !there() {
			continue
		}
		if err != nil {
			return nil, err
		}
		sizes[rec.ID] = containerSize{Written: written[0], Image: images[rec.ImageID]}
	}
	return sizes, nil
}

// imageSizes are the sizes of all images in bytes, by id.
func (a *App) imageSizes() (map[string]int64, error) {
	all, err := a.images()
	if err != nil {
		return nil, err
	}
	sizes := map[string]int64{}
	for _, img := range all {
		sizes[img.ID.String()] = img.Size
	}
	return sizes, nil
}

func (a *App) images() ([]*image.Image, error) {
	store, err := a.Store()
	if err != nil {
		return nil, err
	}
	return store.List()
}

// ownMap is the id map that a container gets by default: of the ids that files
// in volumes can have.
func ownMap() (userns.Map, error) { return userns.Plan(userns.Request{}, userns.Current()) }
