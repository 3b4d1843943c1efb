package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// ingestLayer brings a layer into the store unless it is there, and pins it.
func (s *Store) ingestLayer(ctx context.Context, b blob, diffID digest.Digest, rep *reporter) (*lockFile, error) {
	event := Event{Layer: diffID, Blob: b.digest, Total: max(b.size, 0)}
	report := func(kind EventKind) {
		e := event
		e.Kind = kind
		rep.report(e)
	}
	l, err := pin(s.layerData(diffID))
	if !errors.Is(err, fs.ErrNotExist) {
		report(EventExists)
		return l, err
	}
	w, err := s.work(ctx, diffID.Encoded(), func() { report(EventWait) })
	if err != nil {
		return nil, err
	}
	l, err = pin(s.layerData(diffID)) // the one we waited for may have made it
	if errors.Is(err, fs.ErrNotExist) {
		event.Kind = EventFetch
		l, err = s.fetchLayer(ctx, w, b, diffID, &meter{rep: rep, event: event})
	}
	if err = errors.Join(err, w.close()); err != nil {
		if l != nil {
			err = errors.Join(err, l.release())
		}
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	report(EventDone)
	return l, nil
}

func (s *Store) explainSpace(err error) error {
	if hinted := (*hintError)(nil); errors.As(err, &hinted) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return withHint(err, "free space in %s, with `urun image prune -a` perhaps, or choose another store with --root", s.root)
	}
	return err
}

func (s *Store) fetchLayer(ctx context.Context, w *workDir, b blob, diffID digest.Digest, m *meter) (*lockFile, error) {
	dir, err := writeLayer(w, func(data, index io.Writer) error {
		return streamLayer(ctx, b, diffID, m, data, index)
	})
	if err != nil {
		return nil, err
	}
	return s.publishLayer(w, dir, diffID)
}

// publishLayer puts the directory of a layer in its place. place is the work directory of the layer's key.
func (s *Store) publishLayer(place *workDir, dir string, diffID digest.Digest) (*lockFile, error) {
	// There is no layer, but perhaps half of one.
	if err := s.discardLayer(place, diffID); err != nil {
		return nil, err
	}
	return s.publish(filepath.Join(dir, "data"), dir, s.layerDir(diffID))
}

// writeLayer makes the directory of a layer in w, ready to be renamed to its place.
func writeLayer(w *workDir, stream func(data, index io.Writer) error) (string, error) {
	dir := filepath.Join(w.dir, "layer")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	data, err := createFile(filepath.Join(dir, "data"))
	if err != nil {
		return "", err
	}
	index, err := createFile(filepath.Join(dir, "index"))
	if err != nil {
		return "", errors.Join(err, data.Close())
	}
	err = stream(&spaceGuard{f: data}, index)
	if err == nil {
		err = errors.Join(data.Sync(), index.Sync())
	}
	if err = errors.Join(err, data.Close(), index.Close()); err != nil {
		return "", err
	}
	return dir, syncDir(dir)
}

func createFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
}

// streamLayer is the one pass over a layer: three goroutines read and hash the blob, decompress, and hash, index and
// write the tar, some blocks apart.
func streamLayer(ctx context.Context, b blob, diffID digest.Digest, m *meter, data, index io.Writer) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := b.open(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()

	check := newVerifier(b)
	fetch := newReadAhead(io.TeeReader(body, io.MultiWriter(check, m)))
	defer fetch.Close()
	defer cancel() // before fetch.Close, so that a read that hangs ends

	diff := sha256.New()
	indexErr := indexStream(fetch, diff, data, index)
	if indexErr != nil && (isLocal(indexErr) || b.digest == "") {
		return indexErr
	}
	// The blob's digest is of all its bytes, also of those behind the end of the compressed stream. If the blob is not what
	// it should be, that is the cause of whatever was wrong inside.
	if _, err := io.Copy(io.Discard, fetch); err != nil {
		return err
	}
	if err := check.verify(); err != nil {
		return err
	}
	if indexErr != nil {
		return indexErr
	}
	if got := digest.NewDigestFromBytes(digest.SHA256, diff.Sum(nil)); got != diffID {
		return fmt.Errorf("uncompressed content is %s: %w", got, ErrDigest)
	}
	return nil
}

// indexStream decompresses, hashes and indexes what fetch gives. When it returns nothing reads from fetch any more.
func indexStream(fetch io.Reader, diff hash.Hash, data, index io.Writer) (err error) {
	plain, err := decompress(bufio.NewReaderSize(fetch, 64<<10))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	tar := newReadAhead(plain)
	defer tar.Close()
	_, err = fuseunion.IndexTar(io.TeeReader(tar, diff), data, index, fuseunion.IndexOptions{})
	return err
}

// isLocal says that an error is of this machine's files, not of the content.
func isLocal(err error) bool {
	var pathErr *fs.PathError
	return errors.As(err, &pathErr)
}

// verifier hashes and counts a blob as it arrives.
type verifier struct {
	b    blob
	hash hash.Hash // nil if the source names no digest
	n    int64
}

func newVerifier(b blob) *verifier {
	v := &verifier{b: b}
	if b.digest != "" {
		v.hash = b.digest.Algorithm().Hash()
	}
	return v
}

func (v *verifier) Write(p []byte) (int, error) {
	v.n += int64(len(p))
	if v.b.size >= 0 && v.n > v.b.size {
		return 0, fmt.Errorf("%s has more than the %d bytes that its manifest says: %w", v.b.digest, v.b.size, ErrDigest)
	}
	if v.hash != nil {
		v.hash.Write(p) // never fails, see hash.Hash
	}
	return len(p), nil
}

func (v *verifier) verify() error {
	if v.b.size >= 0 && v.n != v.b.size {
		return fmt.Errorf("%s has %d bytes, not %d: %w", v.b.digest, v.n, v.b.size, ErrDigest)
	}
	if v.hash == nil {
		return nil
	}
	if got := digest.NewDigest(v.b.digest.Algorithm(), v.hash); got != v.b.digest {
		return fmt.Errorf("content is %s, not %s: %w", got, v.b.digest, ErrDigest)
	}
	return nil
}

const (
	spaceStep    = 64 << 20 // how often the free space is looked at
	spaceReserve = 64 << 20 // what an ingest leaves free
)

// spaceGuard writes to a file and stops before the file system is full, so that a decompression bomb does not take
// the last block from everybody else.
type spaceGuard struct {
	f    *os.File
	left int64 // until the next look
}

func (g *spaceGuard) Write(p []byte) (int, error) {
	if g.left -= int64(len(p)); g.left < 0 {
		g.left = spaceStep
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(g.f.Fd()), &st); err != nil {
			return 0, &fs.PathError{Op: "statfs", Path: g.f.Name(), Err: err}
		}
		// One without any blocks, as ramfs and some FUSE file systems, says nothing of its space.
		if st.Blocks > 0 && st.Bavail*uint64(st.Bsize) < spaceReserve {
			return 0, &fs.PathError{Op: "write", Path: g.f.Name(), Err: unix.ENOSPC}
		}
	}
	return g.f.Write(p)
}
