package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/image"
)

// openImage is an image whose tree is open, and which nobody removes meanwhile.
type openImage struct {
	img  *image.Image
	tree *fuseunion.Tree
	held *os.File
}

// openImage opens an image of the store to look into it.
func (a *App) openImage(ref string) (*openImage, error) {
	store, err := a.Store()
	if err != nil {
		return nil, err
	}
	img, err := store.Resolve(ref)
	if err != nil {
		return nil, err
	}
	held, err := store.HoldFile(img)
	if err != nil {
		return nil, err
	}
	ctx, stop := interruptible()
	defer stop()
	tree, mended, err := store.OpenTree(ctx, img)
	if err != nil {
		held.Close()
		return nil, interrupted(ctx, err)
	}
	if mended != "" {
		fmt.Fprintf(a.Stderr, "urun: %s\n", mended)
	}
	a.damageNotes(img)
	return &openImage{img: img, tree: tree, held: held}, nil
}

func (o *openImage) close() error {
	return errors.Join(o.tree.Close(), o.held.Close())
}

// damageNotes tells what of an image turned out to be damaged while somebody read it.
func (a *App) damageNotes(img *image.Image) {
	notes := img.DamageNotes()
	for _, n := range notes {
		fmt.Fprintf(a.Stderr, "urun: %s\n", n)
	}
	if len(notes) > 0 {
		fmt.Fprintf(a.Stderr, "hint: urun image verify --repair %s, and pull the image again\n", img.ShortID())
	}
}
