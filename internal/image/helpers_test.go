package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/urun-dev/urun/fuseunion"
)

// tarOf makes a layer of files, name and content by turns.
func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(files); i += 2 {
		must(t, w.WriteHeader(&tar.Header{Name: files[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[i+1]))}))
		_, err := io.WriteString(w, files[i+1])
		must(t, err)
	}
	must(t, w.Close())
	return buf.Bytes()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(b)
	must(t, err)
	must(t, w.Close())
	return buf.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	must(t, err)
	return w.EncodeAll(b, nil)
}

// noise is content that does not compress.
func noise(n int, seed uint64) string {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 56)
	}
	return string(b)
}

// testImage is an image as a registry has it.
type testImage struct {
	blobs    map[digest.Digest][]byte // config and layers
	manifest []byte
	typ      string
	id       digest.Digest
	diffIDs  []digest.Digest
	layers   []digest.Digest
}

// testLayer is a layer's tar and its blob.
type testLayer struct{ tar, blob []byte }

func gzipLayer(t testing.TB, files ...string) testLayer {
	b := tarOf(t, files...)
	return testLayer{b, gzipped(t, b)}
}

func (m *testImage) digest() digest.Digest { return digest.FromBytes(m.manifest) }

// build makes an image; edit may spoil it before it is sealed.
func build(t testing.TB, edit func(*ocispec.Image, *ocispec.Manifest), layers ...testLayer) *testImage {
	t.Helper()
	m := &testImage{blobs: make(map[digest.Digest][]byte), typ: ocispec.MediaTypeImageManifest}
	config := &ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	config.Config.Cmd = []string{"/bin/sh"}
	manifest := &ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: m.typ}
	for _, l := range layers {
		d := digest.FromBytes(l.blob)
		m.blobs[d] = l.blob
		m.layers = append(m.layers, d)
		m.diffIDs = append(m.diffIDs, digest.FromBytes(l.tar))
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(l.blob))})
	}
	config.RootFS.DiffIDs = append([]digest.Digest(nil), m.diffIDs...)
	if edit != nil {
		edit(config, manifest)
	}
	raw, err := json.Marshal(config)
	must(t, err)
	m.id = digest.FromBytes(raw)
	m.blobs[m.id] = raw
	if manifest.Config.Digest == "" {
		manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: m.id, Size: int64(len(raw))}
	}
	m.manifest, err = json.Marshal(manifest)
	must(t, err)
	return m
}

// testRegistry is a registry in this process, with a place to misbehave.
type testRegistry struct {
	host string

	mu       sync.Mutex
	requests []string // "GET /v2/..."
	// intercept handles a request itself and returns true, or leaves it to the registry.
	intercept func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t testing.TB) *testRegistry {
	reg := new(testRegistry)
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		reg.requests = append(reg.requests, r.Method+" "+r.URL.Path)
		intercept := reg.intercept
		reg.mu.Unlock()
		if intercept == nil || !intercept(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	reg.host = strings.TrimPrefix(srv.URL, "http://")
	return reg
}

func (r *testRegistry) misbehave(f func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// count says how often a request whose text holds all parts came.
func (r *testRegistry) count(parts ...string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
next:
	for _, q := range r.requests {
		for _, p := range parts {
			if !strings.Contains(q, p) {
				continue next
			}
		}
		n++
	}
	return n
}

func (r *testRegistry) put(t testing.TB, method, path, typ string, body []byte) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+r.host+path, bytes.NewReader(body))
	must(t, err)
	req.Header.Set("Content-Type", typ)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	must(t, resp.Body.Close())
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// push stores an image and returns its reference.
func (r *testRegistry) push(t testing.TB, name string, m *testImage) string {
	t.Helper()
	repo, tag, _ := strings.Cut(name, ":")
	for d, b := range m.blobs {
		r.put(t, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", b)
	}
	r.put(t, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, m.typ, m.manifest)
	return r.host + "/" + name
}

// pushIndex stores an index of images.
func (r *testRegistry) pushIndex(t testing.TB, name string, platforms []string, images ...*testImage) string {
	t.Helper()
	repo, _, _ := strings.Cut(name, ":")
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i, m := range images {
		r.push(t, repo+":child"+fmt.Sprint(i), m)
		p, err := ParsePlatform(platforms[i])
		must(t, err)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: m.typ, Digest: m.digest(), Size: int64(len(m.manifest)), Platform: &p})
	}
	raw, err := json.Marshal(index)
	must(t, err)
	r.put(t, http.MethodPut, "/v2/"+name2path(name), ocispec.MediaTypeImageIndex, raw)
	return r.host + "/" + name
}

func name2path(name string) string {
	repo, tag, _ := strings.Cut(name, ":")
	return repo + "/manifests/" + tag
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(Options{Root: filepath.Join(t.TempDir(), "store")})
	must(t, err)
	return s
}

func pull(t testing.TB, s *Store, ref string) *Image {
	t.Helper()
	img, err := s.Pull(context.Background(), ref, PullOptions{Platform: "linux/amd64"})
	must(t, err)
	return img
}

// content reads a file of an image the way a container would see it.
func content(t testing.TB, img *Image, name string) string {
	t.Helper()
	var data []string
	for _, l := range img.Layers {
		data = append(data, l.Data)
	}
	tree, err := fuseunion.OpenTree(img.Tree, data)
	must(t, err)
	b, err := tree.ReadFile(name, 10<<20)
	must(t, err)
	must(t, tree.Close())
	return string(b)
}

// files lists what is in a store, but for directories and the files that are always there.
func files(t testing.TB, s *Store) []string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(s.Root(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "version" && d.Name() != "lock" {
			rel, rerr := filepath.Rel(s.Root(), path)
			all, err = append(all, rel), rerr
		}
		return err
	}))
	return all
}

// hintOf is the cure that an error names.
func hintOf(err error) string {
	for err != nil {
		if h, ok := err.(interface{ Hint() string }); ok {
			return h.Hint()
		}
		switch u := err.(type) {
		case interface{ Unwrap() error }:
			err = u.Unwrap()
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				if h := hintOf(e); h != "" {
					return h
				}
			}
			return ""
		default:
			return ""
		}
	}
	return ""
}
