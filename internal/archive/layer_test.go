package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestALayerHasEachPathByItselfAndWhiteouts(t *testing.T) {
	r, dir := newRoot(t)
	write(t, filepath.Join(dir, "kept/unchanged"), "not in the layer")
	write(t, filepath.Join(dir, "kept/new"), "new")
	if err := errors.Join(
		os.Link(filepath.Join(dir, "kept/new"), filepath.Join(dir, "kept/same")),
		os.Symlink("/kept", filepath.Join(dir, "link")),
	); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.WriteLayer(&b, []LayerEntry{
		{Path: "/"},
		{Path: "/gone", Deleted: true},
		{Path: "/kept"},
		{Path: "/kept/new"},
		{Path: "/kept/old", Deleted: true},
		{Path: "/kept/same"},
		{Path: "/link"},
		{Path: "/went/meanwhile"},
	}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(h.Typeflag)+" "+h.Name+" "+h.Linkname+" "+string(content))
	}
	want := []string{"0 .wh.gone  ", "5 kept/  ", "0 kept/new  new", "0 kept/.wh.old  ", "1 kept/same kept/new ", "2 link /kept "}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
