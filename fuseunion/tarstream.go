package fuseunion

import (
	"errors"
	"fmt"
	"io"
)

const (
	streamBuffer = 1 << 20
	// One entry's headers may hold a GNU long name, a long link and PAX records of
	// 1 MiB each (archive/tar's own limit) before its sparse map of as much.
	maxHeaders = 8 << 20
)

// tarStream is what archive/tar reads from: it copies every byte that it reads to
// data, takes the checksums of its chunks, counts what archive/tar took, and keeps the headers of the current entry.
//
// It implements io.Seeker, forward only, because archive/tar then skips the
// content of files by Seek instead of copying it in 8 KiB pieces to nowhere.
type tarStream struct {
	src  io.Reader
	data io.Writer

	buf  []byte // read and copied to data, of which
	next int    // bytes up to here were taken
	pos  int64  // taken in all
	err  error  // of src or data; io.EOF at the end
	sums *chunkSums

	keep     []byte // what Read returned from keepFrom on
	keepFrom int64
}

func newTarStream(src io.Reader, data io.Writer) *tarStream {
	return &tarStream{src: src, data: data, buf: make([]byte, 0, streamBuffer), sums: newChunkSums()}
}

// fill reads until the buffer is full, so that data is written in large pieces.
func (s *tarStream) fill() error {
	if s.err != nil {
		return s.err
	}
	s.buf, s.next = s.buf[:cap(s.buf)], 0
	n := 0
	for n < len(s.buf) && s.err == nil {
		var m int
		m, s.err = s.src.Read(s.buf[n:])
		n += m
	}
	s.buf = s.buf[:n]
	if s.err != nil && s.err != io.EOF {
		return s.err
	}
	if n == 0 {
		return io.EOF
	}
	s.sums.add(s.buf)
	if _, err := s.data.Write(s.buf); err != nil {
		s.err = fmt.Errorf("write layer data: %w", err)
		return s.err
	}
	return nil
}

func (s *tarStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if s.next == len(s.buf) {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.buf[s.next:])
	if s.pos+int64(n) > s.keepFrom {
		if len(s.keep)+n > maxHeaders {
			return 0, errors.New("headers of an entry larger than 8 MiB")
		}
		s.keep = append(s.keep, p[max(0, s.keepFrom-s.pos):n]...)
	}
	s.next += n
	s.pos += int64(n)
	return n, nil
}

// Seek moves forward from the current place.
func (s *tarStream) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 {
		return 0, errors.ErrUnsupported
	}
	for n > 0 {
		if s.next == len(s.buf) {
			if err := s.fill(); err == io.EOF {
				return 0, io.ErrUnexpectedEOF
			} else if err != nil {
				return 0, err
			}
		}
		m := min(n, int64(len(s.buf)-s.next))
		s.next += int(m)
		s.pos += m
		n -= m
	}
	return s.pos, nil
}

// headersFrom forgets the headers kept so far; those of the next entry begin at pos.
func (s *tarStream) headersFrom(pos int64) {
	s.keep = s.keep[:0]
	s.keepFrom = pos
}

// drain reads and copies the rest.
func (s *tarStream) drain() error {
	for {
		s.pos += int64(len(s.buf) - s.next)
		s.next = len(s.buf)
		if err := s.fill(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
