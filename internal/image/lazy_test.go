package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// Layers made to be read in part are to be pulled as what they are besides: a gzip or zstd stream with a tar in it.

// eStargz makes a layer as https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md has it: a gzip
// member for each entry and for each chunk of a large file, then one with the table of contents, then a footer.
func eStargz(t *testing.T, files ...string) testLayer {
	t.Helper()
	var l testLayer
	member := func(b []byte) {
		l.tar = append(l.tar, b...)
		l.blob = append(l.blob, gzipped(t, b)...)
	}
	entry := func(name, content string) []byte {
		b := tarOf(t, name, content)
		return b[:len(b)-1024] // without the end of the archive
	}
	member(entry(".no.prefetch.landmark", "\xf0"))
	for i := 0; i < len(files); i += 2 {
		b := entry(files[i], files[i+1])
		member(b[:512])
		for chunk := range slices.Chunk(b[512:], 4096) {
			member(chunk)
		}
	}
	toc := len(l.blob)
	member(append(entry("stargz.index.json", `{"version":1,"entries":[]}`), make([]byte, 1024)...))
	var footer bytes.Buffer
	w, err := gzip.NewWriterLevel(&footer, gzip.NoCompression)
	must(t, err)
	w.Extra = append([]byte{'S', 'G', 22, 0}, fmt.Sprintf("%016xSTARGZ", toc)...)
	must(t, w.Close())
	l.blob = append(l.blob, footer.Bytes()...)
	return l
}

// zstdChunked makes a layer as containers/storage does: a frame for each entry, then skippable frames with the table
// of contents and the footer.
func zstdChunked(t *testing.T, files ...string) testLayer {
	t.Helper()
	l := testLayer{tar: tarOf(t, files...)}
	for chunk := range slices.Chunk(l.tar, 512) {
		l.blob = append(l.blob, zstded(t, chunk)...)
	}
	for _, b := range [][]byte{zstded(t, []byte(`{"version":1,"entries":[]}`)), make([]byte, 64)} {
		l.blob = append(l.blob, 0x50, 0x2a, 0x4d, 0x18)
		l.blob = binary.LittleEndian.AppendUint32(l.blob, uint32(len(b)))
		l.blob = append(l.blob, b...)
	}
	return l
}

func TestLayersToBeReadInPartArePulledWhole(t *testing.T) {
	files := []string{"a", noise(10_000, 1), "d/b", "2"}
	for name, layer := range map[string]testLayer{"eStargz": eStargz(t, files...), "zstd:chunked": zstdChunked(t, files...)} {
		t.Run(name, func(t *testing.T) {
			reg, s := newRegistry(t), newStore(t)
			img := pull(t, s, reg.push(t, "test:1", build(t, nil, gzipLayer(t, "base", "x"), layer)))
			tree, _, err := s.OpenTree(context.Background(), img)
			must(t, err)
			defer tree.Close()
			for name, want := range map[string]string{"a": files[1], "d/b": "2", "base": "x"} {
				if got, err := tree.ReadFile(name, 1<<20); err != nil || string(got) != want {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			if st := tree.Stats(); st.Names != 4 { // a, base, d, d/b: nothing of the tables
				t.Errorf("%d names", st.Names)
			}
			if damage, _ := verify(t, s, false); damage != nil {
				t.Errorf("%q", damage)
			}
		})
	}
}
