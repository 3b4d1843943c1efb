package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxTries     = 5
	stallTimeout = 60 * time.Second // a body that gives nothing for so long is asked for again
)

// retry does something until it works, the error is not of the passing kind, or it has been tried often enough.
func retry(ctx context.Context, rep *reporter, what string, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == maxTries || !passing(ctx, err) {
			return err
		}
		rep.report(Event{Kind: EventRetry, Message: fmt.Sprintf("%s: %v", what, err)})
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// pause waits longer with each try: 0.2, 0.6, 1.8, 5.4 s.
func pause(ctx context.Context, try int) error {
	wait := 200 * time.Millisecond
	for range try - 1 {
		wait *= 3
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

// passing says that an error may go away by itself.
func passing(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	var te *transport.Error
	if errors.As(err, &te) {
		return te.StatusCode == http.StatusTooManyRequests || te.StatusCode >= 500 && te.StatusCode != http.StatusNotImplemented ||
			te.StatusCode == http.StatusRequestTimeout
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.IsTemporary || dns.IsTimeout
	}
	// Nobody listens: waiting does not help a person who mistyped a port.
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, errPlainHTTP) {
		return false
	}
	var netErr net.Error
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, errStalled) || errors.As(err, &netErr) && netErr.Timeout()
}

var errStalled = fmt.Errorf("no data for %v", stallTimeout)

// openBlob opens a blob of the registry. The reader goes on with a new request where the last one broke off.
func (r *registry) openBlob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	b := &blobReader{ctx: ctx, reg: r, desc: d, offset: offset}
	err := retry(ctx, r.rep, "fetch "+d.Digest.String(), b.request)
	if err != nil {
		return nil, explainRegistry(err, r.ref)
	}
	return b, nil
}

// blobReader reads a blob across broken connections.
type blobReader struct {
	ctx    context.Context // the reader is the call
	reg    *registry
	desc   ocispec.Descriptor
	offset int64
	tries  int

	body   io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer
	hung   atomic.Bool
}

func (b *blobReader) request() error {
	ctx, cancel := context.WithCancel(b.ctx)
	var header []string
	if b.offset > 0 {
		header = []string{"Range", fmt.Sprintf("bytes=%d-%d", b.offset, b.desc.Size-1)} // some registries want both ends
	}
	resp, err := b.reg.get(ctx, b.reg.base+"/blobs/"+b.desc.Digest.String(), header...)
	if err != nil {
		cancel()
		return err
	}
	b.body, b.cancel = resp.Body, cancel
	b.hung.Store(false)
	b.stall = time.AfterFunc(stallTimeout, func() { b.hung.Store(true); cancel() })
	if b.offset > 0 && resp.StatusCode != http.StatusPartialContent {
		// The server does not know ranges: read again what is already here.
		if _, err := io.CopyN(io.Discard, resp.Body, b.offset); err != nil {
			return errors.Join(err, b.Close())
		}
	}
	return nil
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		n, err := b.body.Read(p)
		if n > 0 {
			b.offset += int64(n)
			b.tries = 0
			b.stall.Reset(stallTimeout)
			if err != io.EOF {
				err = nil // if it lasts, the next read gives it again
			}
			return n, err
		}
		if err == nil {
			continue
		}
		if err == io.EOF {
			return 0, io.EOF // a whole answer, by HTTP's own framing; if it is too short, the verifier says so
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume asks for the rest after a read failed.
func (b *blobReader) resume(err error) error {
	if b.hung.Load() {
		err = errStalled
	}
	// The connection is lost in any case; how it closes tells nothing.
	_ = b.Close()
	for {
		err = fmt.Errorf("read %s at byte %d of %d: %w", b.desc.Digest, b.offset, b.desc.Size, bare(err))
		b.tries++
		if b.tries >= maxTries || !passing(b.ctx, err) {
			return err
		}
		b.reg.rep.report(Event{Kind: EventRetry, Blob: b.desc.Digest, Message: err.Error()})
		if perr := pause(b.ctx, b.tries); perr != nil {
			return perr
		}
		if err = b.request(); err == nil {
			return nil
		}
	}
}

// bare drops the url, which the message has already in a shorter form.
func bare(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

func (b *blobReader) Close() error {
	if b.body == nil {
		return nil
	}
	b.stall.Stop()
	b.cancel()
	err := b.body.Close()
	b.body = nil
	return err
}
