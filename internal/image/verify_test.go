package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urun-dev/urun/fuseunion"
)

// verify gives what is wrong with the only image, "part: problem", and whether it is repaired.
func verify(t *testing.T, s *Store, repair bool) (damage []string, repaired bool) {
	t.Helper()
	must(t, s.Verify(context.Background(), nil, repair, func(v Verified) error {
		for _, d := range v.Damage {
			line := d.Part + ": " + d.Problem
			if len(d.Files) > 0 {
				line += fmt.Sprint(d.Files)
			}
			damage = append(damage, line)
		}
		repaired = repaired || v.Repaired
		return nil
	}))
	return damage, repaired
}

// damages are ways in which a file goes bad.
var damages = map[string]func(t *testing.T, path string){
	"a bit is turned": func(t *testing.T, path string) { turnBit(t, path, 0.7) },
	"the head is bad": func(t *testing.T, path string) { turnBit(t, path, 0) },
	"it is cut short": func(t *testing.T, path string) {
		info, err := os.Stat(path)
		must(t, err)
		must(t, os.Truncate(path, info.Size()/2))
	},
	"it is empty": func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) },
	"it is zeros": func(t *testing.T, path string) {
		info, err := os.Stat(path)
		must(t, err)
		must(t, os.WriteFile(path, make([]byte, info.Size()), 0o644))
	},
	"it has grown": func(t *testing.T, path string) {
		info, err := os.Stat(path)
		must(t, err)
		must(t, os.Truncate(path, info.Size()+4096))
	},
	"it is gone": func(t *testing.T, path string) { must(t, os.Remove(path)) },
}

func turnBit(t *testing.T, path string, where float64) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	b[int(float64(len(b))*where)] ^= 1
	must(t, os.WriteFile(path, b, 0o644))
}

func damageImage(t *testing.T) (reg *testRegistry, s *Store, ref string, img *Image) {
	t.Helper()
	reg, s = newRegistry(t), newStore(t)
	files := []string{"a", noise(300_000, 1)}
	for i := range 500 {
		files = append(files, fmt.Sprintf("d/%d", i), fmt.Sprint("content ", i))
	}
	ref = reg.push(t, "test:1", build(t, nil, gzipLayer(t, files...), gzipLayer(t, "b", noise(300_000, 2))))
	return reg, s, ref, pull(t, s, ref)
}

func TestDamagedIndexesAndTreesAreFoundAndMadeAgain(t *testing.T) {
	_, s, _, img := damageImage(t)
	if damage, repaired := verify(t, s, false); damage != nil || repaired {
		t.Fatalf("a sound store: %v", damage)
	}
	for part, path := range map[string]string{"index": img.Layers[0].Index, "tree": img.Tree} {
		for name, spoil := range damages {
			t.Run(part+": "+name, func(t *testing.T) {
				sound, err := os.ReadFile(path)
				must(t, err)
				spoil(t, path)
				if damage, _ := verify(t, s, false); len(damage) != 1 || !strings.HasPrefix(damage[0], part+": ") {
					t.Errorf("found %q", damage)
				}
				if damage, repaired := verify(t, s, true); len(damage) != 1 || !repaired {
					t.Errorf("repaired %v of %q", repaired, damage)
				}
				if b, err := os.ReadFile(path); err != nil || string(b) != string(sound) {
					t.Errorf("what was made again differs, %v", err)
				}
			})
		}
	}
}

// TestDamagedTreeIsMadeAgainWhenItIsOpened: also from damaged indexes.
func TestDamagedTreeIsMadeAgainWhenItIsOpened(t *testing.T) {
	_, s, _, img := damageImage(t)
	for name, spoil := range damages {
		t.Run(name, func(t *testing.T) {
			spoil(t, img.Tree)
			spoil(t, img.Layers[0].Index)
			tree, mended, err := s.OpenTree(context.Background(), img)
			must(t, err)
			b, err := tree.ReadFile("d/7", 100)
			if err != nil || string(b) != "content 7" || !strings.Contains(mended, "made again") {
				t.Errorf("%q, %v, mended %q", b, err, mended)
			}
			must(t, tree.Close())
			if damage, _ := verify(t, s, false); damage != nil {
				t.Errorf("left: %q", damage)
			}
		})
	}
}

func TestDamagedLayerIsNamedAndFetchedAgain(t *testing.T) {
	reg, s, ref, img := damageImage(t)
	ctx := context.Background()
	for name, spoil := range damages {
		t.Run(name, func(t *testing.T) {
			spoil(t, img.Layers[0].Data)
			damage, _ := verify(t, s, false)
			if len(damage) != 1 || !strings.HasPrefix(damage[0], "layer: ") {
				t.Fatalf("found %q", damage)
			}
			if name == "a bit is turned" && !strings.Contains(damage[0], "65536 bytes at ") {
				t.Errorf("found %q", damage)
			}
			served(t, s, img)
			if _, repaired := verify(t, s, true); !repaired {
				t.Error("not repaired")
			}
			if _, err := s.Resolve(ref); !errors.Is(err, ErrIncomplete) || hintOf(err) == "" {
				t.Errorf("an image without a layer: %v", err)
			}
			before := reg.count("GET", "/blobs/")
			if _, err := s.Pull(ctx, ref, PullOptions{Policy: PolicyMissing, Platform: "linux/amd64"}); err != nil {
				t.Error(err)
			}
			if n := reg.count("GET", "/blobs/") - before; n > 2 { // the config and the layer
				t.Errorf("%d blobs were fetched", n)
			}
			if damage, _ := verify(t, s, false); damage != nil {
				t.Errorf("left: %q", damage)
			}
		})
	}
}

// served opens an image whose data is damaged: every read gives what was in the layer, or an error.
func served(t *testing.T, s *Store, img *Image) {
	t.Helper()
	tree, _, err := s.OpenTree(context.Background(), img)
	if err != nil {
		if hintOf(err) == "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no hint: %v", err)
		}
		return
	}
	defer tree.Close()
	errs := 0
	for name, want := range map[string]string{"a": noise(300_000, 1), "b": noise(300_000, 2), "d/0": "content 0", "d/250": "content 250", "d/499": "content 499"} {
		b, err := tree.ReadFile(name, 1<<20)
		switch {
		case errors.Is(err, fuseunion.ErrDamaged):
			errs++
		case err != nil || string(b) != want:
			t.Errorf("%s: wrong content, %v", name, err)
		}
	}
	if _, err := tree.ReadFile("b", 1<<20); err != nil {
		t.Errorf("the other layer: %v", err)
	}
}

func TestDamagedConfigsAndNamesAreRemoved(t *testing.T) {
	_, s, ref, img := damageImage(t)
	ctx := context.Background()
	turnBit(t, s.configPath(img.ID), 0.5)
	if damage, _ := verify(t, s, false); len(damage) != 1 || !strings.HasPrefix(damage[0], "config: ") {
		t.Errorf("found %q", damage)
	}
	// A pull puts it right by itself.
	if _, err := s.Pull(ctx, ref, PullOptions{Policy: PolicyMissing, Platform: "linux/amd64"}); err != nil {
		t.Error(err)
	}
	if damage, _ := verify(t, s, false); damage != nil {
		t.Errorf("left: %q", damage)
	}
	must(t, os.WriteFile(s.configPath(img.ID), []byte("{"), 0o644))
	must(t, os.WriteFile(filepath.Join(s.path("images", "names"), "junk"), []byte("junk\n"), 0o644))
	// Nothing is collected by somebody who cannot read what is used.
	if _, err := s.Prune(ctx, false, nil); err == nil || !strings.Contains(hintOf(err), "verify --repair") {
		t.Errorf("prune: %v", err)
	}
	if damage, repaired := verify(t, s, true); len(damage) != 2 || !repaired {
		t.Errorf("repaired %v: %q", repaired, damage)
	}
	if _, err := s.Resolve(ref); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	img = pull(t, s, ref)
	if damage, _ := verify(t, s, false); damage != nil {
		t.Errorf("left: %q", damage)
	}
	served(t, s, img)
}

func TestVerifyOfAReadOnlyStore(t *testing.T) {
	_, s, _, img := damageImage(t)
	turnBit(t, img.Tree, 0.7)
	ro, err := Open(Options{Root: s.Root(), ReadOnly: true})
	must(t, err)
	if damage, _ := verify(t, ro, false); len(damage) != 1 {
		t.Errorf("found %q", damage)
	}
	if err := ro.Verify(context.Background(), nil, true, nil); !errors.Is(err, ErrReadOnly) {
		t.Errorf("repair: %v", err)
	}
	if _, _, err := ro.OpenTree(context.Background(), img); !errors.Is(err, ErrReadOnly) {
		t.Errorf("open: %v", err)
	}
}
