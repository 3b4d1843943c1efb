package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullGivesAnImageOfMergedLayers(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	m := build(t, nil, gzipLayer(t, "etc/a", "1", "etc/b", "1"), gzipLayer(t, "etc/b", "2"))
	ref := reg.push(t, "test:1", m)
	img := pull(t, s, ref)
	if img.ID != m.id || len(img.Layers) != 2 || img.Config.Config.Cmd[0] != "/bin/sh" {
		t.Errorf("image is %+v", img)
	}
	if got := content(t, img, "etc/a") + content(t, img, "etc/b"); got != "12" {
		t.Errorf("content is %q", got)
	}
	for _, form := range []string{ref, reg.host + "/test@" + m.digest().String(), m.id.String(), m.id.Encoded(), m.id.Encoded()[:12], "docker://" + ref} {
		if got, err := s.Resolve(form); err != nil || got.ID != m.id {
			t.Errorf("resolve %s: %v, %v", form, got, err)
		}
	}
	if left := tmpFiles(t, s); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

func tmpFiles(t *testing.T, s *Store) []string {
	entries, err := os.ReadDir(s.path("tmp"))
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestPullReadsEveryCompression(t *testing.T) {
	plain := tarOf(t, "a", strings.Repeat("hello ", 100000))
	half := len(plain) / 2
	for name, blob := range map[string][]byte{
		"gzip":                          gzipped(t, plain),
		"gzip of two members":           append(gzipped(t, plain[:half]), gzipped(t, plain[half:])...),
		"zstd":                          zstded(t, plain),
		"zstd of two frames":            append(zstded(t, plain[:half]), zstded(t, plain[half:])...),
		"zstd behind a skippable frame": append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, zstded(t, plain)...),
		"none":                          plain,
	} {
		t.Run(name, func(t *testing.T) {
			reg, s := newRegistry(t), newStore(t)
			img := pull(t, s, reg.push(t, "test:1", build(t, nil, testLayer{plain, blob})))
			if got, err := os.ReadFile(img.Layers[0].Data); err != nil || !slices.Equal(got, plain) {
				t.Errorf("data differs (%v)", err)
			}
		})
	}
}

func TestPullDoesNotFetchWhatIsThere(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	base := gzipLayer(t, "base", "x")
	pull(t, s, reg.push(t, "one:1", build(t, nil, base)))
	m := build(t, nil, base, gzipLayer(t, "top", "y"))
	// The same layer in another compression is the same layer.
	two := build(t, nil, testLayer{base.tar, base.tar}, gzipLayer(t, "top", "y"))
	pull(t, s, reg.push(t, "two:1", m))
	pull(t, s, reg.push(t, "three:1", two))
	if n := reg.count("GET", "two/blobs", m.layers[0].String()) + reg.count("GET", "three/blobs", two.layers[0].String()); n != 0 {
		t.Errorf("a layer of the store was fetched %d times", n)
	}
	if n := reg.count("GET", "two/blobs", m.layers[1].String()); n != 1 {
		t.Errorf("the new layer was fetched %d times", n)
	}
}

func TestPullOfOneLayerTwiceInAnImage(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	l := gzipLayer(t, "a", "x")
	img := pull(t, s, reg.push(t, "test:1", build(t, nil, l, gzipLayer(t, "b", "y"), l)))
	if len(img.Layers) != 3 || img.Layers[0].Data != img.Layers[2].Data {
		t.Errorf("layers are %+v", img.Layers)
	}
}

func TestPullByPlatform(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	amd := build(t, nil, gzipLayer(t, "a", "amd64"))
	arm := build(t, func(c *ocispec.Image, _ *ocispec.Manifest) { c.Architecture = "arm64" }, gzipLayer(t, "a", "arm64"))
	ref := reg.pushIndex(t, "multi:1", []string{"linux/arm64", "linux/amd64"}, arm, amd)
	if img := pull(t, s, ref); img.ID != amd.id {
		t.Errorf("linux/amd64 gives %s", img.ID)
	}
	img, err := s.Pull(context.Background(), ref, PullOptions{Platform: "arm64"})
	if err != nil || img.ID != arm.id || content(t, img, "a") != "arm64" {
		t.Errorf("arm64 gives %v, %v", img, err)
	}
	_, err = s.Pull(context.Background(), ref, PullOptions{Platform: "linux/s390x"})
	if err == nil || !strings.Contains(hintOf(err), "linux/arm64") {
		t.Errorf("s390x: %v, hint %q", err, hintOf(err))
	}
	one := reg.push(t, "single:1", arm)
	if _, err = s.Pull(context.Background(), one, PullOptions{Platform: "linux/amd64"}); err == nil {
		t.Error("an arm64 image is given for linux/amd64")
	}
}

func TestPullPolicies(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	ctx := context.Background()
	ref := reg.host + "/test:1"
	if _, err := s.Pull(ctx, ref, PullOptions{Policy: PolicyNever}); !errors.Is(err, ErrNotFound) {
		t.Errorf("never, and not there: %v", err)
	}
	first := build(t, nil, gzipLayer(t, "a", "1"))
	second := build(t, nil, gzipLayer(t, "a", "2"))
	reg.push(t, "test:1", first)
	if img, err := s.Pull(ctx, ref, PullOptions{Policy: PolicyMissing}); err != nil || img.ID != first.id {
		t.Fatalf("missing, and not there: %v, %v", img, err)
	}
	reg.push(t, "test:1", second)
	if img, err := s.Pull(ctx, ref, PullOptions{Policy: PolicyMissing}); err != nil || img.ID != first.id {
		t.Errorf("missing, and there: %v, %v", img, err)
	}
	if img, err := s.Pull(ctx, ref, PullOptions{}); err != nil || img.ID != second.id {
		t.Errorf("always: %v, %v", img, err)
	}
	old, err := s.Inspect(first.id.String())
	if err != nil || len(old.Names) != 0 {
		t.Errorf("the image that lost its name: %+v, %v", old, err)
	}
}

// TestPullRefuses: bad content of every kind is an error that says what is wrong, and nothing of it stays.
func TestPullRefuses(t *testing.T) {
	good := func() testLayer { return gzipLayer(t, "a", noise(300000, 1)) }
	wrong := func(b []byte) []byte { c := slices.Clone(b); c[len(c)/2] ^= 1; return c }
	for _, tt := range []struct {
		name string
		img  func(t *testing.T) *testImage
		body func(path string, body []byte) []byte // what the registry serves instead
		want string
		is   error
	}{
		{"a layer with a flipped bit", nil, func(_ string, b []byte) []byte { return wrong(b) }, "digest mismatch", ErrDigest},
		{"a layer that is cut off", nil, func(_ string, b []byte) []byte { return b[:len(b)-100] }, "has 301513 bytes, not 301613", ErrDigest},
		{"a layer with more behind it", nil, func(_ string, b []byte) []byte { return append(slices.Clone(b), "more"...) }, "digest mismatch", ErrDigest},
		{"a layer whose diff id is another", func(t *testing.T) *testImage {
			return build(t, func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.DiffIDs[0] = digest.FromString("x") }, good())
		}, nil, "uncompressed content is", ErrDigest},
		{"more layers than diff ids", func(t *testing.T) *testImage {
			return build(t, func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.DiffIDs = nil }, good())
		}, nil, "manifest has 1 layers but config has 0", ErrDigest},
		{"a layer that is no tar", func(t *testing.T) *testImage {
			junk := []byte(noise(4096, 2))
			return build(t, nil, testLayer{junk, gzipped(t, junk)})
		}, nil, "layer sha256:", nil},
		{"a tar that is cut off", func(t *testing.T) *testImage {
			b := good().tar[:100000]
			return build(t, nil, testLayer{b, gzipped(t, b)})
		}, nil, "layer sha256:", nil},
		{"a name that climbs out", func(t *testing.T) *testImage { return build(t, nil, gzipLayer(t, "../../etc/passwd", "x")) }, nil, "..", nil},
		{"bytes behind the gzip stream", func(t *testing.T) *testImage {
			l := good()
			l.blob = append(l.blob, "junk"...)
			return build(t, nil, l)
		}, nil, "layer sha256:", nil},
		{"xz", func(t *testing.T) *testImage {
			return build(t, nil, testLayer{nil, []byte("\xfd7zXZ\x00whatever")})
		}, nil, "xz", ErrUnsupported},
		{"an encrypted layer", func(t *testing.T) *testImage {
			return build(t, func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }, good())
		}, nil, "encrypted layer", ErrUnsupported},
		{"a foreign layer", func(t *testing.T) *testImage {
			return build(t, func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].MediaType = dockerForeignLayer }, good())
		}, nil, "foreign layer", ErrUnsupported},
		{"an artifact that is no image", func(t *testing.T) *testImage {
			return build(t, func(_ *ocispec.Image, m *ocispec.Manifest) {
				m.Config = ocispec.Descriptor{MediaType: "application/vnd.cncf.helm.config.v1+json", Digest: digest.FromString("{}"), Size: 2}
			}, good())
		}, nil, "artifact", ErrUnsupported},
		{"a config of absurd size", func(t *testing.T) *testImage {
			return build(t, func(_ *ocispec.Image, m *ocispec.Manifest) {
				m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("x"), Size: 1 << 40}
			}, good())
		}, nil, "out of range", nil},
		{"a windows image", func(t *testing.T) *testImage {
			return build(t, func(c *ocispec.Image, _ *ocispec.Manifest) { c.OS = "windows" }, good())
		}, nil, "windows/amd64", ErrUnsupported},
		{"schema 1", func(t *testing.T) *testImage {
			return &testImage{manifest: []byte(`{"schemaVersion":1,"fsLayers":[]}`), typ: dockerSchema1 + "+prettyjws"}
		}, nil, "schema 1", ErrUnsupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg, s := newRegistry(t), newStore(t)
			if tt.img == nil {
				tt.img = func(t *testing.T) *testImage { return build(t, nil, good(), gzipLayer(t, "other", "y")) }
			}
			m := tt.img(t)
			ref := reg.push(t, "bad:1", m)
			if tt.body != nil {
				reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
					if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, m.layers[0].String()) {
						return false
					}
					_, err := w.Write(tt.body(r.URL.Path, m.blobs[m.layers[0]]))
					return err == nil
				})
			}
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			_, err := s.Pull(ctx, ref, PullOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
			for _, f := range files(t, s) {
				// Another, good layer may have been finished before.
				if !strings.HasPrefix(f, "layers/") || len(m.diffIDs) > 0 && strings.Contains(f, m.diffIDs[0].Encoded()) {
					t.Errorf("left behind: %s", f)
				}
			}
		})
	}
}

func TestPullRefusesManifests(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	m := build(t, nil, gzipLayer(t, "a", "x"))
	reg.push(t, "test:1", m)
	serve := func(body string) {
		reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			_, err := io.WriteString(w, body)
			return err == nil
		})
	}
	for _, tt := range []struct{ name, ref, body, want string }{
		{"another manifest than the digest says", "test@" + digest.FromString("x").String(), string(m.manifest), "digest mismatch"},
		{"no JSON", "test:1", "<html>", "parse manifest"},
		{"an endless one", "test:1", strings.Repeat(" ", maxManifestSize+1), "more than"},
		{"both index and manifest", "test:1", `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[],"layers":[]}`, "fields of an image manifest"},
		{"an empty index", "test:1", `{"schemaVersion":2,"manifests":[]}`, "index names no platform"},
		{"an index entry without a digest", "test:1", `{"schemaVersion":2,"manifests":[{"size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`, "digest"},
		{"an unknown type", "test:1", `{"schemaVersion":2,"mediaType":"text/plain"}`, "unsupported"},
		{"no config", "test:1", `{"schemaVersion":2}`, "no config"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serve(tt.body)
			_, err := s.Pull(context.Background(), reg.host+"/"+tt.ref, PullOptions{Platform: "linux/amd64"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
		})
	}
}

func TestPullGoesOnWhereAConnectionBroke(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("the registry knows ranges: %v", ranges), func(t *testing.T) {
			reg, s := newRegistry(t), newStore(t)
			m := build(t, nil, gzipLayer(t, "a", noise(1<<20, 3)))
			ref := reg.push(t, "test:1", m)
			blob := m.blobs[m.layers[0]]
			var mu sync.Mutex
			sent, tries := 0, 0
			reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, m.layers[0].String()) {
					return false
				}
				mu.Lock()
				defer mu.Unlock()
				tries++
				from := 0
				if h := r.Header.Get("Range"); h != "" && ranges {
					if _, err := fmt.Sscanf(h, "bytes=%d-", &from); err != nil {
						t.Errorf("range %q: %v", h, err)
					}
					w.Header().Set("Content-Length", fmt.Sprint(len(blob)-from))
					w.WriteHeader(http.StatusPartialContent)
				} else {
					w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				}
				end := min(len(blob), 400000*tries)
				n, err := w.Write(blob[from:end])
				sent += n
				if err == nil && end < len(blob) {
					panic(http.ErrAbortHandler)
				}
				return true
			})
			img := pull(t, s, ref)
			mu.Lock()
			defer mu.Unlock()
			if len(content(t, img, "a")) != 1<<20 || tries != 3 {
				t.Errorf("%d requests", tries)
			}
			if ranges && sent > len(blob)+3*64<<10 {
				t.Errorf("%d bytes were sent for %d", sent, len(blob))
			}
		})
	}
}

func TestPullTriesAgainWhatMayPass(t *testing.T) {
	for _, tt := range []struct {
		status int
		tries  int
	}{{500, 2}, {503, 2}, {429, 2}, {400, 1}, {404, 1}, {403, 1}} {
		t.Run(fmt.Sprint(tt.status), func(t *testing.T) {
			reg, s := newRegistry(t), newStore(t)
			m := build(t, nil, gzipLayer(t, "a", "x"))
			ref := reg.push(t, "test:1", m)
			var mu sync.Mutex
			tries := 0
			reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if !strings.HasSuffix(r.URL.Path, m.layers[0].String()) {
					return false
				}
				if tries++; tries == 1 {
					w.WriteHeader(tt.status)
					return true
				}
				return false
			})
			var retries int
			_, err := s.Pull(context.Background(), ref, PullOptions{Platform: "linux/amd64", Progress: func(e Event) {
				if e.Kind == EventRetry {
					retries++
				}
			}})
			if (err == nil) != (tt.tries == 2) || tries != tt.tries || retries != tt.tries-1 {
				t.Errorf("%d tries, %d told, error %v", tries, retries, err)
			}
		})
	}
}

func TestPullThatIsCancelledLeavesNothing(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	m := build(t, nil, gzipLayer(t, "a", noise(1<<20, 4)))
	ref := reg.push(t, "test:1", m)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, m.layers[0].String()) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(m.blobs[m.layers[0]])))
		if _, err := w.Write(m.blobs[m.layers[0]][:500000]); err != nil {
			return true
		}
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
		return true
	})
	start := time.Now()
	if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	if left := files(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPlainHTTPIsForLoopbackOnly(t *testing.T) {
	for _, tt := range []struct {
		url      string
		insecure bool
		allowed  bool
	}{
		{"http://127.0.0.1:1/", false, true},
		{"http://[::1]:1/", false, true},
		{"http://localhost:1/", false, true},
		{"http://10.0.0.1:5000/", false, false},
		{"http://192.168.1.1/", false, false},
		{"http://registry.example/", false, false},
		{"http://127.0.0.1.example/", false, false},
		{"http://registry.example/", true, true},
		{"https://registry.example/", false, true},
	} {
		reached := false
		g := &httpGuard{insecure: tt.insecure, inner: roundTripper(func(*http.Request) (*http.Response, error) {
			reached = true
			return nil, io.EOF
		})}
		req, err := http.NewRequest(http.MethodGet, tt.url, nil)
		must(t, err)
		if _, err := g.RoundTrip(req); reached != tt.allowed {
			t.Errorf("%s (insecure %v): reached %v, error %v", tt.url, tt.insecure, reached, err)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
