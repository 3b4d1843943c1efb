package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func TestStoreBelongsToItsUserAndIsPlain(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	pull(t, s, reg.push(t, "test:1", build(t, nil, gzipLayer(t, "a", "x"))))
	must(t, filepath.WalkDir(s.Root(), func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		info, err := d.Info()
		must(t, err)
		if d.IsDir() && info.Mode().Perm()&0o700 != 0o700 || !d.IsDir() && !d.Type().IsRegular() {
			t.Errorf("%s is %v", path, info.Mode())
		}
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		if int(st.Uid) != os.Getuid() {
			t.Errorf("%s belongs to %d", path, st.Uid)
		}
		if n, err := unix.Llistxattr(path, nil); err == nil && n > 0 && os.Getenv("SELINUX") != "" {
			t.Errorf("%s has extended attributes", path)
		}
		return nil
	}))
	must(t, os.RemoveAll(s.Root()))
}

func TestStoreOfAnotherVersionIsRefused(t *testing.T) {
	s := newStore(t)
	must(t, os.WriteFile(s.path("version"), []byte("urun store 99\n"), 0o644))
	if _, err := Open(Options{Root: s.Root()}); !errors.Is(err, ErrUnsupported) || hintOf(err) == "" {
		t.Errorf("error is %v", err)
	}
}

func TestReadOnlyStore(t *testing.T) {
	reg, owner := newRegistry(t), newStore(t)
	ref := reg.push(t, "test:1", build(t, nil, gzipLayer(t, "a", "x")))
	pull(t, owner, ref)
	s, err := Open(Options{Root: owner.Root(), ReadOnly: true})
	must(t, err)
	img, err := s.Resolve(ref)
	must(t, err)
	release, err := s.Hold(img)
	must(t, err)
	ctx := context.Background()
	if _, err := owner.Remove(ctx, ref, true); !errors.Is(err, ErrInUse) {
		t.Errorf("the owner removes what another holds: %v", err)
	}
	release()
	if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, ErrReadOnly) || hintOf(err) == "" {
		t.Errorf("pull: %v", err)
	}
	if got, err := s.Pull(ctx, ref, PullOptions{Policy: PolicyMissing}); err != nil || got.ID != img.ID {
		t.Errorf("pull of what is there: %v", err)
	}
	if _, err := s.Remove(ctx, ref, false); !errors.Is(err, ErrReadOnly) {
		t.Errorf("remove: %v", err)
	}
	if err := s.Tag(ctx, ref, "x"); !errors.Is(err, ErrReadOnly) {
		t.Errorf("tag: %v", err)
	}
	if _, err := Open(Options{Root: filepath.Join(t.TempDir(), "none"), ReadOnly: true}); err == nil {
		t.Error("a store that is not there opens read-only")
	}
}

// TestStoreOfSomebodyElse: what this user may not write opens read-only by itself.
func TestStoreOfSomebodyElse(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user: root may write everything")
	}
	reg, owner := newRegistry(t), newStore(t)
	ref := reg.push(t, "test:1", build(t, nil, gzipLayer(t, "a", "x")))
	pull(t, owner, ref)
	must(t, os.Chmod(owner.Root(), 0o500))
	t.Cleanup(func() { must(t, os.Chmod(owner.Root(), 0o700)) })
	s, err := Open(Options{Root: owner.Root()})
	must(t, err)
	if _, err := s.Resolve(ref); err != nil || !s.ReadOnly() {
		t.Errorf("read-only %v, resolve %v", s.ReadOnly(), err)
	}
}

func TestResolveErrors(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	pull(t, s, reg.push(t, "test:1", build(t, nil, gzipLayer(t, "a", "x"))))
	for _, ref := range []string{"nothing", "nothing:1", "abcdef", someHex, "sha256:" + someHex, "oci:dir:tag", "-", ""} {
		if _, err := s.Resolve(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	if _, err := s.Resolve("Debian"); err == nil || !strings.Contains(err.Error(), "lower case") {
		t.Errorf("upper case: %v", err)
	}
}

func TestResolveOfAnAmbiguousID(t *testing.T) {
	s := newStore(t)
	for _, id := range []string{"abcd" + someHex[4:], "abce" + someHex[4:]} {
		must(t, os.WriteFile(s.path("images/sha256", id), []byte("{}"), 0o644))
	}
	if _, err := s.Resolve("abc"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("error is %v", err)
	}
	if _, err := s.Resolve("abcd"); !errors.Is(err, ErrDigest) {
		t.Errorf("a config that is not what its name says: %v", err)
	}
}

func TestLongNamesHaveFiles(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	pull(t, s, reg.push(t, "test:1", build(t, nil, gzipLayer(t, "a", "x"))))
	long := "quay.io/" + strings.Repeat("abcdefghi/", 24) + "x:" + strings.Repeat("t", 128)
	must(t, s.Tag(context.Background(), reg.host+"/test:1", long))
	img, err := s.Inspect(long)
	if err != nil || !slices.Contains(img.Names, long) {
		t.Errorf("%v, %v", img, err)
	}
}

func TestRemove(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	ctx := context.Background()
	base := gzipLayer(t, "base", "x")
	one, two := build(t, nil, base, gzipLayer(t, "one", "1")), build(t, nil, base)
	refOne, refTwo := reg.push(t, "one:1", one), reg.push(t, "two:1", two)
	pull(t, s, refOne)
	pull(t, s, refTwo)
	must(t, s.Tag(ctx, refOne, "extra"))

	if _, err := s.Remove(ctx, one.id.Encoded()[:12], false); err == nil || !strings.Contains(hintOf(err), "rmi -f") {
		t.Errorf("an image with two names by id: %v", err)
	}
	r, err := s.Remove(ctx, "extra", false)
	if err != nil || !slices.Equal(r.Untagged, []string{"extra:latest"}) || len(r.Deleted) != 0 {
		t.Errorf("one of two names: %+v, %v", r, err)
	}
	s.inUse = func() (map[digest.Digest]bool, error) { return map[digest.Digest]bool{one.id: true}, nil }
	if _, err := s.Remove(ctx, refOne, true); !errors.Is(err, ErrInUse) {
		t.Errorf("an image that a container uses: %v", err)
	}
	if r, err := s.Prune(ctx, true, nil); err != nil || !slices.Equal(r.Deleted, []digest.Digest{two.id}) {
		t.Errorf("prune beside a container: %+v, %v", r, err)
	}
	pull(t, s, refTwo)
	s.inUse = nil
	r, err = s.Remove(ctx, refOne, false)
	if err != nil || !slices.Equal(r.Deleted, []digest.Digest{one.id}) || !slices.Equal(r.Layers, one.diffIDs[1:]) || r.Freed == 0 {
		t.Errorf("the last name: %+v, %v", r, err)
	}
	img, err := s.Resolve(refTwo)
	must(t, err)
	if content(t, img, "base") != "x" {
		t.Error("the shared layer is damaged")
	}
	if _, err := s.Remove(ctx, two.id.String(), false); err != nil {
		t.Error(err)
	}
	if left := files(t, s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestPruneTakesDanglingImagesAndLooseLayers(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	ctx := context.Background()
	first := build(t, nil, gzipLayer(t, "a", "1"))
	ref := reg.push(t, "test:1", first)
	pull(t, s, ref)
	second := build(t, nil, gzipLayer(t, "a", "2"))
	reg.push(t, "test:1", second)
	pull(t, s, ref)
	loose := s.layerDir(digest.FromString("loose"))
	must(t, os.Mkdir(loose, 0o755))
	for _, f := range []string{"data", "index"} {
		must(t, os.WriteFile(filepath.Join(loose, f), []byte("12345"), 0o644))
	}
	r, err := s.Prune(ctx, false, nil)
	if err != nil || !slices.Equal(r.Deleted, []digest.Digest{first.id}) || len(r.Layers) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := s.Resolve(ref); err != nil {
		t.Error(err)
	}
	images, err := s.List()
	if err != nil || len(images) != 1 {
		t.Errorf("%v, %v", images, err)
	}
}

func TestLostTreeIsMadeAgain(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	ref := reg.push(t, "test:1", build(t, nil, gzipLayer(t, "a", "x")))
	img := pull(t, s, ref)
	must(t, os.Remove(img.Tree))
	img, err := s.Resolve(ref)
	if err != nil || content(t, img, "a") != "x" {
		t.Error(err)
	}
}

func TestFullDiskIsSaidPlainly(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs /dev/full: ", err)
	}
	defer full.Close()
	s := newStore(t)
	_, err = (&spaceGuard{f: full, left: 1 << 20}).Write([]byte("x"))
	if err = s.explainSpace(err); !errors.Is(err, unix.ENOSPC) || !strings.Contains(hintOf(err), "image prune") {
		t.Errorf("error is %v", err)
	}
	if !isLocal(err) {
		t.Error("a full disk is taken for bad content")
	}
}

func TestArchivesRoundTrip(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	ctx := context.Background()
	base := gzipLayer(t, "base", "x")
	one, two := build(t, nil, base, gzipLayer(t, "one", "1")), build(t, nil, base)
	pull(t, s, reg.push(t, "one:1", one))
	pull(t, s, reg.push(t, "two:1", two))
	must(t, s.Tag(ctx, one.id.String(), "app:1"))
	must(t, s.Tag(ctx, one.id.String(), "app:2"))
	must(t, s.Tag(ctx, two.id.String(), "quay.io/base"))

	for _, format := range []string{FormatDockerArchive, FormatOCIArchive} {
		for name, pack := range map[string]func(testing.TB, []byte) []byte{
			"plain": func(_ testing.TB, b []byte) []byte { return b }, "gzip": gzipped, "zstd": zstded,
		} {
			t.Run(format+" "+name, func(t *testing.T) {
				var buf bytes.Buffer
				must(t, s.Save(ctx, &buf, format, "app:1", "app:2", "quay.io/base"))
				file := filepath.Join(t.TempDir(), "archive.tar")
				must(t, os.WriteFile(file, pack(t, buf.Bytes()), 0o644))
				f, err := os.Open(file)
				must(t, err)
				other := newStore(t)
				if _, err := other.Load(ctx, f, LoadOptions{Platform: "linux/amd64"}); err != nil {
					t.Fatal(err)
				}
				for ref, id := range map[string]digest.Digest{"app:1": one.id, "app:2": one.id, "quay.io/base:latest": two.id} {
					if img, err := other.Resolve(ref); err != nil || img.ID != id {
						t.Errorf("%s: %v, %v", ref, img, err)
					}
				}
				tag := map[string]string{FormatDockerArchive: "quay.io/base", FormatOCIArchive: "quay.io/base:latest"}[format]
				if img, err := other.Pull(ctx, format+":"+file+":"+tag, PullOptions{Platform: "linux/amd64"}); err != nil || img.ID != two.id {
					t.Errorf("pull %s: %v, %v", tag, img, err)
				}
			})
		}
	}
	t.Run("oci directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "layout")
		must(t, s.SaveLayout(ctx, dir, one.id.Encoded()))
		if err := s.SaveLayout(ctx, dir, two.id.Encoded()); err == nil {
			t.Error("a second save into the same directory works")
		}
		other := newStore(t)
		img, err := other.Pull(ctx, "oci:"+dir, PullOptions{Platform: "linux/amd64"})
		if err != nil || img.ID != one.id || !slices.Equal(img.Names, []string{"localhost/layout:latest"}) {
			t.Errorf("%+v, %v", img, err)
		}
		if _, err := other.Resolve("layout"); err != nil {
			t.Error(err)
		}
	})
}

// TestLoadOfOldDockerArchive: the layout before docker 25, with layers of the same content as links.
func TestLoadOfOldDockerArchive(t *testing.T) {
	layer := tarOf(t, "a", "x")
	m := build(t, nil, testLayer{layer, layer}, testLayer{layer, layer})
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(h tar.Header, data []byte) {
		h.Size, h.Mode = int64(len(data)), 0o644
		must(t, w.WriteHeader(&h))
		_, err := w.Write(data)
		must(t, err)
	}
	put(tar.Header{Name: "aa/layer.tar"}, layer)
	put(tar.Header{Name: "bb/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../aa/layer.tar"}, nil)
	put(tar.Header{Name: "cc.json"}, m.blobs[m.id])
	put(tar.Header{Name: "manifest.json"}, []byte(`[{"Config":"cc.json","RepoTags":["old:1"],"Layers":["aa/layer.tar","bb/layer.tar"]}]`))
	must(t, w.Close())
	good := buf.Bytes()
	load := func(t *testing.T, b []byte) (*Store, error) {
		file := filepath.Join(t.TempDir(), "a.tar")
		must(t, os.WriteFile(file, b, 0o644))
		f, err := os.Open(file)
		must(t, err)
		s := newStore(t)
		_, err = s.Load(context.Background(), f, LoadOptions{Platform: "linux/amd64"})
		return s, err
	}
	s, err := load(t, good)
	must(t, err)
	if img, err := s.Resolve("old:1"); err != nil || img.ID != m.id || content(t, img, "a") != "x" {
		t.Errorf("%v, %v", img, err)
	}
	for name, bad := range map[string][]byte{
		"cut off":               good[:len(good)/2],
		"a layer changed":       bytes.Replace(slices.Clone(good), []byte("x\x00"), []byte("y\x00"), 1),
		"a layer missing":       bytes.ReplaceAll(good, []byte("bb/layer.tar"), []byte("dd/layer.tat")),
		"no archive at all":     []byte("hello"),
		"empty":                 nil,
		"a gzip stream cut off": gzipped(t, good)[:100],
	} {
		t.Run(name, func(t *testing.T) {
			s, err := load(t, bad)
			if err == nil {
				t.Error("it loads")
			}
			for _, f := range files(t, s) {
				if !strings.HasPrefix(f, "layers/") {
					t.Errorf("left: %s", f)
				}
			}
		})
	}
}

func TestImport(t *testing.T) {
	s := newStore(t)
	root := tarOf(t, "etc/os-release", "x")
	img, err := s.Import(context.Background(), bytes.NewReader(gzipped(t, root)), ImportOptions{
		Name: "mine:1", Message: "from a tar",
		Changes: []string{
			`CMD ["/bin/sh","-l"]`, `ENTRYPOINT run it`, `ENV A=1 B="two words"`, `ENV C three`, `LABEL x.y="z"`,
			`EXPOSE 80 53/udp`, `USER nobody`, `WORKDIR /srv`, `VOLUME ["/data"]`, `STOPSIGNAL SIGINT`,
		},
	})
	must(t, err)
	c := img.Config.Config
	if !slices.Equal(c.Cmd, []string{"/bin/sh", "-l"}) || !slices.Equal(c.Entrypoint, []string{"/bin/sh", "-c", "run it"}) ||
		!slices.Equal(c.Env, []string{"A=1", "B=two words", "C=three"}) || c.Labels["x.y"] != "z" || len(c.ExposedPorts) != 2 ||
		c.User != "nobody" || c.WorkingDir != "/srv" || len(c.Volumes) != 1 || c.StopSignal != "SIGINT" {
		t.Errorf("config is %+v", c)
	}
	if got, err := s.Resolve("mine:1"); err != nil || got.ID != img.ID || content(t, got, "etc/os-release") != "x" {
		t.Errorf("%v, %v", got, err)
	}
	// The same root filesystem again is the same layer.
	again, err := s.Import(context.Background(), bytes.NewReader(root), ImportOptions{})
	if err != nil || again.Layers[0] != img.Layers[0] {
		t.Errorf("%v, %v", again, err)
	}
	for _, bad := range []ImportOptions{{Name: "Bad"}, {Name: "x@sha256:" + someHex}, {Changes: []string{"RUN x"}}, {Changes: []string{"ENV"}}, {Changes: []string{`ENV A="x`}}, {Platform: "/"}} {
		if _, err := s.Import(context.Background(), bytes.NewReader(root), bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	if left := tmpFiles(t, s); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

// BenchmarkResolve is what every run pays.
func BenchmarkResolve(b *testing.B) {
	reg, s := newRegistry(b), newStore(b)
	var layers []testLayer
	for i := range 9 {
		layers = append(layers, gzipLayer(b, string(rune('a'+i)), "x"))
	}
	ref := reg.push(b, "test:1", build(b, nil, layers...))
	pull(b, s, ref)
	for b.Loop() {
		if _, err := s.Resolve(ref); err != nil {
			b.Fatal(err)
		}
	}
}
