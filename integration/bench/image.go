package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/urun-dev/urun/integration/artifact"
	"github.com/urun-dev/urun/integration/benchkit"
)

const (
	imageName = "debian:nine"
	layers    = "9"
	// With minbase they come to about 230 MB, compressed.
	packages = "ca-certificates,git,python3,golang-go"
)

// cachedImage returns a directory of docker-registry's with the image in it, made now or at an earlier run: a Debian
// tree, cut into layers of about equal size.
func cachedImage(ctx context.Context) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	suite, sources, err := artifact.DebianSource()
	if err != nil {
		return "", err
	}
	list, err := os.ReadFile(sources)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(strings.Join([]string{"1", suite, string(list), packages, layers, runtime.GOARCH}, "\x00")))
	dir := filepath.Join(cache, fmt.Sprintf("registry-%x", key[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fmt.Fprintf(os.Stderr, "making the image, kept for later runs as %s\n", dir)
	work, err := os.MkdirTemp(cache, "work-")
	if err != nil {
		return "", err
	}
	err = makeImage(ctx, work, suite, sources)
	if err == nil {
		err = os.Rename(filepath.Join(work, "registry"), dir)
	}
	return dir, errors.Join(err, os.RemoveAll(work))
}

// cacheDir is below XDG_CACHE_HOME, or a directory of the user's own in /var/tmp, where anybody might have made one.
func cacheDir() (string, error) {
	dir := filepath.Join("/var/tmp", fmt.Sprintf("urun-bench-cache-%d", os.Getuid()))
	if home := os.Getenv("XDG_CACHE_HOME"); home != "" {
		dir = filepath.Join(home, "urun-bench")
		if err := os.MkdirAll(home, 0o755); err != nil {
			return "", err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || !fi.IsDir() || int(st.Uid) != os.Getuid() {
		return "", fmt.Errorf("%s is not a directory of the caller's", dir)
	}
	return dir, nil
}

func makeImage(ctx context.Context, work, suite, sources string) (err error) {
	tar, layout, store := filepath.Join(work, "root.tar"), filepath.Join(work, "layout"), filepath.Join(work, "registry")
	for _, args := range [][]string{
		{"mmdebstrap", "--quiet", "--variant=minbase", "--include=" + packages, suite, tar, sources},
		{"go", "run", "./integration/tarimage", "-layers", layers, tar, layout},
	} {
		if err := benchkit.Command(args[0], args[1:]...); err != nil {
			return err
		}
	}
	if err := os.Mkdir(store, 0o755); err != nil {
		return err
	}
	reg, err := startRegistry(ctx, store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.stop()) }()
	return benchkit.Command("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "oci:"+layout+":latest", "docker://"+reg.addr+"/"+imageName)
}

// registry is a docker-registry on loopback, without TLS.
type registry struct {
	addr   string
	config string
	cmd    *exec.Cmd
	log    bytes.Buffer
}

func startRegistry(ctx context.Context, store string) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{addr: l.Addr().String()}
	if err := l.Close(); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp("", "urun-bench-registry-")
	if err != nil {
		return nil, err
	}
	r.config = f.Name()
	_, err = fmt.Fprintf(f, "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", store, r.addr)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(r.config))
	}
	r.cmd = exec.Command("docker-registry", "serve", r.config)
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	// Its own process group: a ctrl-C is the caller's, who then stops it.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.cmd.Start(); err != nil {
		return nil, errors.Join(err, os.Remove(r.config))
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err = get(ctx, "http://"+r.addr+"/v2/"); err == nil {
			return r, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("docker-registry does not answer: %w", err), r.stop())
		}
	}
}

func (r *registry) stop() error {
	err := r.cmd.Process.Signal(syscall.SIGTERM)
	var exit *exec.ExitError
	if waited := r.cmd.Wait(); waited != nil && !errors.As(waited, &exit) {
		err = errors.Join(err, waited)
	}
	return errors.Join(err, os.Remove(r.config))
}

// size is that of the image's layers, compressed, and their number.
func (r *registry) size(ctx context.Context) (bytes int64, count int, err error) {
	name, tag, _ := strings.Cut(imageName, ":")
	data, err := get(ctx, "http://"+r.addr+"/v2/"+name+"/manifests/"+tag)
	if err != nil {
		return 0, 0, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return 0, 0, err
	}
	for _, l := range m.Layers {
		bytes += l.Size
	}
	return bytes, len(m.Layers), nil
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", v1.MediaTypeImageManifest)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return data, err
}
