package image

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// maxArchiveEntries bounds what the table of an archive may take.
const maxArchiveEntries = 1 << 20

// openArchive opens a docker-archive or oci-archive. kind "" finds out which it is: an archive that has docker's
// manifest.json is taken for docker's, since current docker writes archives that are both.
func (s *Store) openArchive(name, kind string) (localSource, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = withHint(fmt.Errorf("%s is a directory, not an archive", name), "use oci:%s for an OCI image layout", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s.readArchive(f, info, name, kind)
}

// readArchive takes f over.
func (s *Store) readArchive(f *os.File, info fs.FileInfo, name, kind string) (localSource, error) {
	plain, err := s.seekable(f, info)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read archive %s: %w", name, err), f.Close())
	}
	t := &tarTree{f: plain}
	if err := t.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("read archive %s: %w", name, err), t.Close())
	}
	src, err := archiveSource(t, name, kind)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return src, nil
}

func archiveSource(t *tarTree, name, kind string) (localSource, error) {
	if kind == "" {
		kind = transportOCIArchive
		if _, ok := t.entries[dockerManifestFile]; ok {
			kind = transportDockerArchive
		} else if _, ok := t.entries["oci-layout"]; !ok {
			return nil, withHint(fmt.Errorf("%s is neither a docker archive nor an OCI archive", name),
				"a root filesystem is taken in with `urun import`")
		}
	}
	if kind == transportDockerArchive {
		return openDockerArchive(t, name)
	}
	return openLayout(t, name)
}

// seekable gives the archive uncompressed and seekable: f itself, or a copy of it in a file without a name, which ends with the process.
func (s *Store) seekable(f *os.File, info fs.FileInfo) (*os.File, error) {
	r := bufio.NewReaderSize(f, 64<<10)
	head, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if info.Mode().IsRegular() && !isCompressed(head) {
		return f, nil
	}
	plain, err := decompress(r)
	if err != nil {
		return nil, err
	}
	tmp, err := s.nameless()
	if err != nil {
		return nil, errors.Join(err, plain.Close())
	}
	_, err = io.Copy(&spaceGuard{f: tmp}, plain)
	if err = errors.Join(err, plain.Close()); err == nil {
		err = f.Close()
	}
	if err != nil {
		return nil, errors.Join(err, tmp.Close())
	}
	return tmp, nil
}

// nameless makes a file in the store that has no name: nothing of it can stay behind.
func (s *Store) nameless() (*os.File, error) {
	f, err := os.CreateTemp(s.path("tmp"), "spool-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func isCompressed(head []byte) bool {
	return isZstd(head) || strings.HasPrefix(string(head), "\x1f\x8b") || strings.HasPrefix(string(head), "BZh") ||
		strings.HasPrefix(string(head), "\xfd7zXZ")
}

// tarTree is a tar whose files are read where they lie.
type tarTree struct {
	f       *os.File
	entries map[string]tarEntry
}

type tarEntry struct {
	offset, size int64
	link         string // another entry's name
}

func (t *tarTree) scan() error {
	if _, err := t.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	t.entries = make(map[string]tarEntry)
	r := tar.NewReader(t.f) // seeks over the contents
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if len(t.entries) >= maxArchiveEntries {
			return fmt.Errorf("more than %d entries", maxArchiveEntries)
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := t.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			t.entries[name] = tarEntry{offset: at, size: h.Size}
		case tar.TypeLink:
			t.entries[name] = tarEntry{link: path.Clean(strings.TrimPrefix(h.Linkname, "/"))}
		case tar.TypeSymlink: // old docker archives share layers this way
			t.entries[name] = tarEntry{link: path.Join(path.Dir(name), h.Linkname)}
		}
	}
}

// maxLinks bounds chains of links in an archive.
const maxLinks = 8

func (t *tarTree) open(name string) (io.ReadSeekCloser, int64, error) {
	at := path.Clean(name)
	for range maxLinks {
		e, ok := t.entries[at]
		if !ok {
			return nil, 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		if e.link == "" {
			return section{io.NewSectionReader(t.f, e.offset, e.size)}, e.size, nil
		}
		at = e.link
	}
	return nil, 0, fmt.Errorf("%s: too many links", name)
}

func (t *tarTree) Close() error { return t.f.Close() }

// section is a part of the archive; the archive's file is closed by the tarTree.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }
