package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// Damage is something of an image that is not what it should be.
type Damage struct {
	Part     string // "name", "config", "layer", "index" or "tree"
	Path     string
	Problem  string
	Files    []string `json:",omitempty"` // of a layer: the files whose content is damaged
	Repaired string   `json:",omitempty"` // what was done about it
	Cure     string   `json:",omitempty"` // what the user can do
}

// Verified is what a verification found out about one image.
type Verified struct {
	ID       digest.Digest // "" for what belongs to no image
	Names    []string
	Layers   int
	Bytes    int64 // of the layers
	Damage   []Damage
	Repaired bool // all of it
}

// Verify reads images whole, or with no refs all of the store, and compares: the config and the data of layers with their digests, each index with
// one made anew of the data, the tree with one merged anew. It calls each for every image. With repair what can be made
// again is, and layers and configs that are not what their digests say are removed, so that the next pull fetches them.
func (s *Store) Verify(ctx context.Context, refs []string, repair bool, each func(Verified) error) error {
	if repair {
		if err := s.writable(); err != nil {
			return err
		}
	}
	v := &checker{s: s, repair: repair, layers: make(map[digest.Digest][]Damage)}
	ids, err := v.targets(ctx, refs, each)
	if err != nil {
		return fmt.Errorf("verify images: %w", err)
	}
	for _, id := range ids {
		found, err := v.image(ctx, id)
		if errors.Is(err, fs.ErrNotExist) && len(refs) == 0 {
			continue // removed since the directory was read
		}
		if err != nil {
			return fmt.Errorf("verify image %s: %w", id, s.explainSpace(err))
		}
		if err := each(found); err != nil {
			return err
		}
	}
	return nil
}

type checker struct {
	s      *Store
	repair bool
	layers map[digest.Digest][]Damage // of those that were looked at
	names  map[digest.Digest][]Reference
}

// targets finds the images and reports names that cannot be read.
func (v *checker) targets(ctx context.Context, refs []string, each func(Verified) error) ([]digest.Digest, error) {
	damage, err := v.readNames(ctx)
	if err != nil {
		return nil, err
	}
	if len(refs) == 0 {
		if len(damage) > 0 {
			if err := each(Verified{Damage: damage, Repaired: v.repair}); err != nil {
				return nil, err
			}
		}
		return v.s.ids()
	}
	var ids []digest.Digest
	for _, ref := range refs {
		id, _, err := v.s.lookup(ref)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func (v *checker) readNames(ctx context.Context) (damage []Damage, err error) {
	v.names = make(map[digest.Digest][]Reference)
	dir := v.s.path("images", "names")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		id, name, err := readNameFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			v.names[id] = append(v.names[id], name)
			continue
		}
		d := Damage{Part: "name", Path: path, Problem: "does not name an image", Cure: "urun image verify --repair, then pull the image again"}
		if v.repair {
			if err := v.underLock(ctx, func() error { return os.Remove(path) }); err != nil {
				return nil, err
			}
			d.Repaired, d.Cure = "removed", "pull the image again"
		}
		damage = append(damage, d)
	}
	return damage, nil
}

func (v *checker) underLock(ctx context.Context, fn func() error) error {
	l, err := v.s.lockStore(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(), l.release())
}

func (v *checker) image(ctx context.Context, id digest.Digest) (found Verified, err error) {
	found = Verified{ID: id}
	for _, n := range v.names[id] {
		found.Names = append(found.Names, n.Familiar())
	}
	defer func() {
		found.Repaired = len(found.Damage) > 0
		for _, d := range found.Damage {
			found.Repaired = found.Repaired && d.Repaired != ""
		}
	}()
	// Nobody removes what is being looked at.
	l, err := pin(v.s.configPath(id))
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, l.release()) }()
	raw, err := os.ReadFile(v.s.configPath(id))
	if err != nil {
		return found, err
	}
	img, err := v.s.describe(raw)
	if img == nil || img.ID != id {
		d, err := v.config(ctx, id, err)
		found.Damage = append(found.Damage, d)
		return found, err
	}
	if err != nil {
		return found, err
	}
	whole := true
	for _, layer := range img.Layers {
		damage, err := v.layer(ctx, layer)
		if err != nil {
			return found, err
		}
		for _, d := range damage {
			whole = whole && d.Part != "layer" && (d.Part != "index" || d.Repaired != "")
		}
		found.Damage = append(found.Damage, damage...)
		if info, err := os.Stat(layer.Data); err == nil {
			found.Bytes += info.Size()
		}
		found.Layers++
	}
	if !whole {
		return found, nil // there is nothing to make a tree of
	}
	damage, err := v.tree(ctx, img)
	found.Damage = append(found.Damage, damage...)
	return found, err
}

// config reports a config that is not what its digest says.
func (v *checker) config(ctx context.Context, id digest.Digest, problem error) (Damage, error) {
	d := Damage{Part: "config", Path: v.s.configPath(id), Problem: ErrDigest.Error(), Cure: "pull the image again"}
	if problem != nil {
		d.Problem = oneLine(problem)
	}
	if !v.repair {
		return d, nil
	}
	// With the config gone, the names stand for nothing, which a pull puts right.
	d.Repaired = "removed"
	return d, v.underLock(ctx, func() error { return os.Remove(d.Path) })
}

// layer checks a layer and its index; one that images share is reported with each, and read once.
func (v *checker) layer(ctx context.Context, l Layer) (damage []Damage, err error) {
	if damage, ok := v.layers[l.DiffID]; ok {
		return damage, nil
	}
	defer func() { v.layers[l.DiffID] = damage }()
	problem, indexProblem, err := compareLayer(ctx, l)
	switch {
	case err != nil:
		return nil, err
	case problem != "":
		d, err := v.lostLayer(ctx, l, problem)
		return append(damage, d), err
	case indexProblem == "":
		if v.repair {
			err = fuseunion.Unnote(l.Data) // what a disk gave once and does not give any more
		}
		return nil, err
	}
	d := Damage{Part: "index", Path: l.Index, Problem: indexProblem, Cure: "urun image verify --repair, or the next run, makes it again"}
	if v.repair {
		if err := v.s.reindex(ctx, l); err != nil {
			return nil, err
		}
		d.Repaired, d.Cure = "made again", ""
	}
	return append(damage, d), nil
}

// compareLayer reads a layer's data once, and says what is wrong with it or with the index.
func compareLayer(ctx context.Context, l Layer) (problem, indexProblem string, err error) {
	data, err := os.Open(l.Data)
	if errors.Is(err, fs.ErrNotExist) {
		return "missing", "", nil
	}
	if err != nil {
		return "", "", err
	}
	defer data.Close()
	hash := sha256.New()
	have := newComparer(l.Index)
	_, err = fuseunion.IndexTar(io.TeeReader(contextReader{ctx, data}, hash), io.Discard, have, fuseunion.IndexOptions{})
	if ctx.Err() != nil {
		return "", "", errors.Join(ctx.Err(), have.close())
	}
	indexErr := errors.Join(err, have.finish())
	if _, err := io.Copy(hash, contextReader{ctx, data}); errors.Is(err, unix.EIO) {
		return "the disk cannot read it", "", nil
	} else if err != nil {
		return "", "", fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	if got := digest.NewDigestFromBytes(digest.SHA256, hash.Sum(nil)); got != l.DiffID {
		return "content is " + got.String(), "", nil
	}
	if indexErr != nil {
		return "", oneLine(indexErr), nil
	}
	return "", "", nil
}

// lostLayer reports a layer whose data is not what its diffID says, with the files that are damaged.
func (v *checker) lostLayer(ctx context.Context, l Layer, problem string) (Damage, error) {
	d := Damage{Part: "layer", Path: l.Data, Problem: problem, Cure: "urun image verify --repair, then pull the image again"}
	// Where the index is damaged too it cannot be said what is.
	if bad, files, err := fuseunion.CheckData(fuseunion.Layer{Data: l.Data, Index: l.Index}); err == nil {
		var runs []string
		for _, r := range bad {
			runs = append(runs, fmt.Sprintf("%d bytes at %d", r.Length, r.Offset))
		}
		d.Files = files
		if len(runs) > 0 {
			d.Problem += ": damaged are " + strings.Join(runs[:min(len(runs), 5)], ", ")
		}
		if len(runs) > 5 {
			d.Problem += fmt.Sprintf(" and %d more runs", len(runs)-5)
		}
	}
	if !v.repair {
		return d, nil
	}
	// Whoever has it open keeps it; who starts now is told that it is missing.
	d.Repaired, d.Cure = "removed", "pull the image again"
	w, err := v.s.work(ctx, l.DiffID.Encoded(), nil)
	if err != nil {
		return d, err
	}
	return d, errors.Join(v.s.discardLayer(w, l.DiffID), w.close())
}

// tree compares the merged tree with one made now.
func (v *checker) tree(ctx context.Context, img *Image) ([]Damage, error) {
	have := newComparer(img.Tree)
	err := fuseunion.MergeTree(img.mergeLayers(), have)
	if errors.Is(err, fuseunion.ErrDamaged) {
		return nil, errors.Join(err, have.close()) // an index that verify has not repaired says so itself
	}
	if err = errors.Join(err, have.finish()); err == nil {
		return nil, nil
	}
	d := Damage{Part: "tree", Path: img.Tree, Problem: oneLine(err), Cure: "urun image verify --repair, or the next run, makes it again"}
	if !v.repair {
		return []Damage{d}, nil
	}
	w, err := v.s.work(ctx, "tree-"+img.ChainID.Encoded(), nil)
	if err != nil {
		return nil, err
	}
	l, err := v.s.writeTree(ctx, w, img)
	if err = errors.Join(err, w.close()); err != nil {
		return nil, err
	}
	d.Repaired, d.Cure = "made again", ""
	return []Damage{d}, l.release()
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// comparer compares what is written to it with a file.
type comparer struct {
	f   *os.File
	r   *bufio.Reader
	buf []byte
	err error
}

var errDiffers = errors.New("differs from one made now")

func newComparer(path string) *comparer {
	c := &comparer{}
	if c.f, c.err = os.Open(path); c.err == nil {
		c.r = bufio.NewReaderSize(c.f, 1<<20)
	} else if errors.Is(c.err, fs.ErrNotExist) {
		c.err = errors.New("missing")
	}
	return c
}

func (c *comparer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && c.err == nil {
		if c.buf == nil {
			c.buf = make([]byte, 1<<16)
		}
		k := min(len(p), len(c.buf))
		if _, err := io.ReadFull(c.r, c.buf[:k]); err != nil || string(c.buf[:k]) != string(p[:k]) {
			c.err = errDiffers
		}
		p = p[k:]
	}
	return n, nil // so that the whole of the source is read
}

// finish says whether the file is what was written.
func (c *comparer) finish() error {
	if c.err == nil {
		if _, err := c.r.ReadByte(); err != io.EOF {
			c.err = errDiffers
		}
	}
	return errors.Join(c.err, c.close())
}

func (c *comparer) close() error {
	if c.f == nil {
		return nil
	}
	f := c.f
	c.f = nil
	return f.Close()
}
