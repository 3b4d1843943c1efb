package integration

import (
	"archive/tar"
	"path/filepath"
	"runtime"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/urun-dev/urun/integration/harness"
	"github.com/urun-dev/urun/integration/ocilayout"
)

// entry is one file of a hostile image's top layer.
type entry struct {
	hdr     tar.Header
	content string
}

func symlink(name, target string) entry {
	return entry{hdr: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func file(name, content string, mode int64) entry {
	return entry{hdr: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content: content}
}

func dirEntry(name string) entry {
	return entry{hdr: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}}
}

// cveImage makes an image of the demo image's layers and one more with the entries, and returns its reference.
func cveImage(t *testing.T, entries ...entry) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	_, err := ocilayout.Write(
		dir,
		ocilayout.Options{Tag: "latest", Architecture: runtime.GOARCH, Config: v1.ImageConfig{Env: []string{"PATH=/usr/bin:/bin"}}},
		ocilayout.Entries(func(tw *tar.Writer) error { return ocilayout.CopyLayers(tw, harness.DemoLayout(), 0, 1) }),
		ocilayout.Entries(func(tw *tar.Writer) error {
			for _, e := range entries {
				hdr := e.hdr
				if err := ocilayout.Entry(tw, &hdr, e.content); err != nil {
					return err
				}
			}
			return nil
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":latest"
}
