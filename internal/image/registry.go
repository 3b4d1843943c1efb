package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerHub is the host that serves docker.io.
const dockerHub = "index.docker.io"

// registry is one repository of a registry, seen by one user.
type registry struct {
	ref    Reference
	base   string // scheme://host/v2/repository
	client *http.Client
	rep    *reporter
}

// registryOptions say how to speak with a registry.
type registryOptions struct {
	insecure bool // plain http and unverified certificates will do
	auth     authn.Authenticator
	rep      *reporter
}

// connect shakes hands with the registry: scheme, authentication, token to pull.
func connect(ctx context.Context, ref Reference, opt registryOptions) (*registry, error) {
	host := registryHost(ref.Registry)
	var nameOpts []name.Option
	if opt.insecure {
		nameOpts = append(nameOpts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, nameOpts...)
	if err != nil {
		return nil, err
	}
	inner, err := baseTransport(host, opt.insecure)
	if err != nil {
		return nil, err
	}
	var rt http.RoundTripper
	err = retry(ctx, opt.rep, "connect to "+ref.Registry, func() error {
		rt, err = transport.NewWithContext(ctx, reg, opt.auth, inner, []string{"repository:" + ref.Repository + ":pull"})
		return err
	})
	if err != nil {
		return nil, explainRegistry(err, ref)
	}
	// The transport replaces the scheme by the one that the handshake found.
	return &registry{
		ref: ref, client: &http.Client{Transport: rt}, rep: opt.rep,
		base: "https://" + host + "/v2/" + ref.Repository,
	}, nil
}

func registryHost(registry string) string {
	if registry == defaultRegistry {
		return dockerHub
	}
	return registry
}

// baseTransport is http with timeouts for everything but the body, which may take its time.
func baseTransport(host string, insecure bool) (http.RoundTripper, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   20 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   maxParallel,
		IdleConnTimeout:       30 * time.Second,
		ReadBufferSize:        64 << 10,
		DisableCompression:    true, // the bytes as they are: they are what was hashed
	}
	config, err := tlsConfig(host)
	if err != nil {
		return nil, err
	}
	config.InsecureSkipVerify = insecure
	t.TLSClientConfig = config
	return &httpGuard{inner: t, insecure: insecure}, nil
}

// httpGuard lets plain http through to loopback hosts only. The library below would use it for every private address.
type httpGuard struct {
	inner    http.RoundTripper
	insecure bool
}

func (g *httpGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.insecure && !isLoopback(req.URL.Hostname()) {
		return nil, errPlainHTTP
	}
	return g.inner.RoundTrip(req)
}

var errPlainHTTP = errors.New("plain http refused")

func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// explainRegistry turns what a registry said into an error with a cure.
func explainRegistry(err error, ref Reference) error {
	var te *transport.Error
	var certErr *tls.CertificateVerificationError
	var recordErr tls.RecordHeaderError
	switch {
	case errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden):
		return withHint(fmt.Errorf("access denied by %s (no such repository, or a login is needed): %w", ref.Registry, err),
			"urun login %s", ref.Registry)
	case errors.As(err, &te) && te.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s does not have it: %w", ref.Registry, ErrNotFound)
	case errors.As(err, &te) && te.StatusCode == http.StatusTooManyRequests:
		return withHint(err, "the registry limits pulls; `urun login %s` may raise the limit", ref.Registry)
	case errors.As(err, &certErr):
		return withHint(err, "put the registry's CA in /etc/containers/certs.d/%s/ca.crt, or use --tls-verify=false", ref.Registry)
	case errors.As(err, &recordErr), errors.Is(err, errPlainHTTP), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return withHint(err, "the registry speaks plain http; if that is meant, use --tls-verify=false")
	}
	return err
}

const manifestTypes = ocispec.MediaTypeImageManifest + ", " + ocispec.MediaTypeImageIndex + ", " + dockerManifest + ", " + dockerManifestList

// top reads the manifest or index that the reference names, and its digest.
func (r *registry) top(ctx context.Context) ([]byte, digest.Digest, error) {
	var raw []byte
	var said string
	err := retry(ctx, r.rep, "read manifest of "+r.ref.Familiar(), func() (err error) {
		raw, said, err = r.getManifest(ctx, r.ref.identifier())
		return err
	})
	if err != nil {
		return nil, "", explainRegistry(err, r.ref)
	}
	got := digest.FromBytes(raw)
	want := r.ref.Digest
	if d, err := parseDigest(said); want == "" && err == nil {
		want = d
	}
	if want == "" {
		return raw, got, nil
	}
	return raw, want, verifyBytes(raw, want)
}

// manifest implements contentSource.
func (r *registry) manifest(ctx context.Context, d digest.Digest) (raw []byte, err error) {
	err = retry(ctx, r.rep, "read manifest "+d.String(), func() (err error) {
		raw, _, err = r.getManifest(ctx, d.String())
		return err
	})
	if err != nil {
		return nil, explainRegistry(err, r.ref)
	}
	return raw, nil
}

func (r *registry) getManifest(ctx context.Context, identifier string) (raw []byte, said string, err error) {
	resp, err := r.get(ctx, r.base+"/manifests/"+identifier, "Accept", manifestTypes)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if t := resp.Header.Get("Content-Type"); strings.HasPrefix(t, dockerSchema1) {
		return nil, "", checkImageManifest(&anyManifest{MediaType: t})
	}
	raw, err = readAtMost(resp.Body, maxManifestSize)
	if err != nil {
		return nil, "", fmt.Errorf("manifest %s: %w", identifier, err)
	}
	return raw, resp.Header.Get("Docker-Content-Digest"), nil
}

// get sends one request and accepts 200 and 206.
func (r *registry) get(ctx context.Context, url string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}

// blob implements contentSource.
func (r *registry) blob(d ocispec.Descriptor) blob {
	return blob{digest: d.Digest, size: d.Size, open: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return r.openBlob(ctx, d, offset)
	}}
}
