package fuseunion

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

const tarBlock = 512

var errSparse = errors.New("malformed sparse map")

// archive/tar reads sparse files but does not say where their pieces lie, so the
// maps are parsed again here, from the header blocks that it has just read.
// https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html

// sparseMap returns the extents of a sparse file and where in the tar its content
// ends, or ok false for a file that is not sparse. headers are the blocks read for
// the entry; content is the offset in the tar of the byte behind them.
func sparseMap(h *tar.Header, headers []byte, content int64) (es []extent, end int64, ok bool, err error) {
	var pairs []int64
	pax := h.PAXRecords
	major, minor := pax["GNU.sparse.major"], pax["GNU.sparse.minor"]
	switch {
	case h.Typeflag == tar.TypeGNUSparse:
		pairs, err = oldSparse(headers)
	case major == "1" && minor == "0":
		pairs, err = paxSparse1(headers)
	case major == "0" && (minor == "0" || minor == "1"), major == "" && minor == "" && pax["GNU.sparse.map"] != "":
		pairs, err = paxSparse0(pax["GNU.sparse.map"])
	case major != "" || minor != "":
		return nil, 0, false, fmt.Errorf("sparse format %q.%q is not known", major, minor)
	default:
		return nil, 0, false, nil
	}
	if err != nil {
		return nil, 0, false, err
	}
	if es, end, err = extentsOf(pairs, h.Size, content); err != nil {
		return nil, 0, false, err
	}
	stored, err := storedSize(h, headers, content)
	if err == nil && stored != end-content {
		err = fmt.Errorf("sparse map of %d bytes over %d stored ones", end-content, stored)
	}
	return es, end, true, err
}

// storedSize returns how many bytes of content follow the headers.
func storedSize(h *tar.Header, headers []byte, content int64) (int64, error) {
	block, after, err := entryHeader(headers)
	if err != nil {
		return 0, err
	}
	n, err := tarNumber(block[124:136])
	if s := h.PAXRecords["size"]; s != "" {
		n, err = strconv.ParseInt(s, 10, 64)
	}
	if h.Typeflag != tar.TypeGNUSparse {
		n -= int64(len(after)) // the map of format 1.0 is part of the content
	}
	return n, err
}

// extentsOf turns offsets and lengths into extents, dropping the empty ones with
// which tar marks a hole at the end.
func extentsOf(pairs []int64, size, content int64) (es []extent, dataEnd int64, err error) {
	var end int64
	for i := 0; i+1 < len(pairs); i += 2 {
		at, n := pairs[i], pairs[i+1]
		if at < end || n < 0 || n > size-at || content > math.MaxInt64-n {
			return nil, 0, errors.New("sparse map overlaps or leaves the file")
		}
		end = at + n
		if n == 0 {
			continue
		}
		es = append(es, extent{at: uint64(at), length: uint64(n), data: uint64(content)})
		content += n
	}
	return es, content, nil
}

// entryHeader returns the header block of the entry itself and what follows it,
// passing over the PAX and GNU headers before it.
func entryHeader(b []byte) (block, after []byte, err error) {
	for len(b) >= tarBlock {
		block, b = b[:tarBlock], b[tarBlock:]
		switch block[156] {
		case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
			n, err := tarNumber(block[124:136])
			if err != nil {
				return nil, nil, err
			}
			padded := (n + tarBlock - 1) / tarBlock * tarBlock
			if n < 0 || padded > int64(len(b)) {
				return nil, nil, errSparse
			}
			b = b[padded:]
		default:
			return block, b, nil
		}
	}
	return nil, nil, errSparse
}

// oldSparse reads the map of a header with typeflag S and of its extension blocks.
func oldSparse(headers []byte) (pairs []int64, err error) {
	block, rest, err := entryHeader(headers)
	if err != nil {
		return nil, err
	}
	entries, extended := block[386:482], block[482]
	for {
		for i := 0; i < len(entries); i += 24 {
			if entries[i] == 0 {
				break
			}
			at, err := tarNumber(entries[i : i+12])
			if err != nil {
				return nil, err
			}
			n, err := tarNumber(entries[i+12 : i+24])
			if err != nil {
				return nil, err
			}
			pairs = append(pairs, at, n)
		}
		if extended == 0 {
			return pairs, nil
		}
		if len(rest) < tarBlock {
			return nil, errSparse
		}
		entries, extended, rest = rest[:504], rest[504], rest[tarBlock:]
	}
}

// paxSparse0 reads the map of the PAX formats 0.0 and 0.1; archive/tar has turned
// the former into the latter.
func paxSparse0(m string) (pairs []int64, err error) {
	if m == "" {
		return nil, nil
	}
	for f := range strings.SplitSeq(m, ",") {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil, errSparse
		}
		pairs = append(pairs, n)
	}
	if len(pairs)%2 != 0 {
		return nil, errSparse
	}
	return pairs, nil
}

// paxSparse1 reads the map of the PAX format 1.0, which stands before the content.
func paxSparse1(headers []byte) (pairs []int64, err error) {
	_, m, err := entryHeader(headers)
	if err != nil {
		return nil, err
	}
	number := func() (int64, error) {
		line, rest, found := bytes.Cut(m, []byte{'\n'})
		n, err := strconv.ParseInt(string(line), 10, 64)
		if !found || err != nil {
			return 0, errSparse
		}
		m = rest
		return n, nil
	}
	count, err := number()
	if err != nil || count < 0 || count > int64(len(m))/2 {
		return nil, errSparse
	}
	for range 2 * count {
		n, err := number()
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, n)
	}
	return pairs, nil
}

// tarNumber reads a numeric field: octal digits, or base 256 if the top bit is set.
func tarNumber(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		var n uint64
		for i, c := range b {
			if i == 0 {
				c &= 0x7f
			}
			if n>>55 != 0 {
				return 0, errSparse
			}
			n = n<<8 | uint64(c)
		}
		return int64(n), nil
	}
	s := strings.Trim(string(b), " \x00")
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 8, 63)
	if err != nil {
		return 0, errSparse
	}
	return int64(n), nil
}
