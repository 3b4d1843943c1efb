package fuseunion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// meta is what a file of the writable layer is and the host's file system can not
// say of it: the union's word goes before the host's. It is kept in the attribute
// metaXattr of regular files and directories where the host has user.* attributes,
// else, and for all other files, in the ledger.
type meta struct {
	has  uint8 // which of the following are there
	uid  uint32
	gid  uint32
	mode uint32 // type and permissions, set-id bits included
	rdev uint32 // as FUSE has it
	// origin is the path in the lower file system of what this was copied up from or,
	// of a directory, of what is merged into it.
	origin string
	xattrs map[string][]byte // those that the host can not keep
	// What is needed to open a lazyFile.
	lazyName  string
	lazySize  uint64
	lazyTotal uint64
}

// What a meta has.
const (
	metaOwner  = 1 << iota // uid, gid, mode
	metaOrigin             // origin
	metaOpaque             // directory: nothing of a lower one shows through
	metaXattrs
	metaLazy // regular file: see lazyFile
)

const (
	metaVersion = 1
	// metaXattr is hidden from the mount, as all names below metaPrefix.
	metaPrefix = "user.urun."
	metaXattr  = metaPrefix + "meta"
)

func (m *meta) empty() bool { return m.has == 0 }

// clone returns a copy that may be changed: what is known of a file is replaced
// whole, never changed in place.
func (m *meta) clone() meta {
	c := *m
	c.xattrs = maps.Clone(m.xattrs)
	return c
}

func (m *meta) encode() []byte {
	b := []byte{metaVersion, m.has}
	le := binary.AppendUvarint
	if m.has&metaOwner != 0 {
		b = le(le(le(le(b, uint64(m.uid)), uint64(m.gid)), uint64(m.mode)), uint64(m.rdev))
	}
	if m.has&metaOrigin != 0 {
		b = append(le(b, uint64(len(m.origin))), m.origin...)
	}
	if m.has&metaXattrs != 0 {
		b = le(b, uint64(len(m.xattrs)))
		for _, name := range slices.Sorted(maps.Keys(m.xattrs)) {
			b = append(le(b, uint64(len(name))), name...)
			b = append(le(b, uint64(len(m.xattrs[name]))), m.xattrs[name]...)
		}
	}
	if m.has&metaLazy != 0 {
		b = m.encodeLazy(b)
	}
	return b
}

var errMeta = fmt.Errorf("%w: metadata of a file in the writable layer", ErrDamaged)

func decodeMeta(b []byte) (m meta, err error) {
	if len(b) < 2 || b[0] != metaVersion {
		return m, errMeta
	}
	m.has = b[1]
	r := metaReader{b: b[2:]}
	if m.has&metaOwner != 0 {
		m.uid, m.gid, m.mode, m.rdev = r.u32(), r.u32(), r.u32(), r.u32()
	}
	if m.has&metaOrigin != 0 {
		m.origin = string(r.bytes())
	}
	if m.has&metaXattrs != 0 {
		n := r.uvarint()
		m.xattrs = make(map[string][]byte, min(n, 16))
		for ; n > 0 && !r.bad; n-- {
			name := string(r.bytes())
			m.xattrs[name] = slices.Clone(r.bytes())
		}
	}
	if m.has&metaLazy != 0 {
		m.decodeLazy(&r)
	}
	if r.bad || len(r.b) > 0 {
		return meta{}, errMeta
	}
	return m, nil
}

// metaReader takes an encoded meta apart; bad is set when it ends too early.
type metaReader struct {
	b   []byte
	bad bool
}

func (r *metaReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *metaReader) u32() uint32 {
	v := r.uvarint()
	if v > 1<<32-1 {
		r.bad = true
	}
	return uint32(v)
}

func (r *metaReader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

// inXattr tells whether the metadata of a file of this type is kept with it.
func (u *Union) inXattr(hostType uint32) bool {
	return u.hasXattrs && (hostType == unix.S_IFREG || hostType == unix.S_IFDIR)
}

// readMeta returns what is kept of the host's file st, which is name in the
// directory dirfd or, if name is empty, the open file dirfd.
func (u *Union) readMeta(dirfd int, name string, st *unix.Stat_t) (meta, error) {
	if !u.inXattr(st.Mode & unix.S_IFMT) {
		return u.ledger.get(st.Ino)
	}
	var buf [512]byte
	b := buf[:]
	for {
		n, err := getxattrAt(dirfd, name, metaXattr, b)
		switch {
		case err == nil:
			return decodeMeta(b[:n])
		case errors.Is(err, unix.ENODATA):
			return meta{}, nil
		case errors.Is(err, unix.ERANGE) && len(b) < 1<<16:
			b = make([]byte, 1<<16)
		default:
			return meta{}, fmt.Errorf("read metadata: %w", err)
		}
	}
}

// writeMeta replaces what is kept of a file; see readMeta.
func (u *Union) writeMeta(dirfd int, name string, hostType uint32, host uint64, m *meta) error {
	if !u.inXattr(hostType) {
		return u.ledger.set(host, m)
	}
	if m.empty() {
		err := removexattrAt(dirfd, name, metaXattr)
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		return err
	}
	return setxattrAt(dirfd, name, metaXattr, m.encode(), 0)
}

// procPath names a file for the system calls that know no descriptors, or none
// that are O_PATH.
func procPath(dirfd int, name string) string {
	b := append(make([]byte, 0, 32+len(name)), "/proc/self/fd/"...)
	b = strconv.AppendInt(b, int64(dirfd), 10)
	if name != "" {
		b = append(append(b, '/'), name...)
	}
	return string(b)
}

// The attributes of a file that is a name in a directory or, with an empty name,
// an open file. A link at the end of the path is that of /proc: to be followed only
// if there is no name.
func getxattrAt(dirfd int, name, attr string, b []byte) (int, error) {
	if name == "" {
		return unix.Getxattr(procPath(dirfd, ""), attr, b)
	}
	return unix.Lgetxattr(procPath(dirfd, name), attr, b)
}

func setxattrAt(dirfd int, name, attr string, value []byte, flags int) error {
	if name == "" {
		return unix.Setxattr(procPath(dirfd, ""), attr, value, flags)
	}
	return unix.Lsetxattr(procPath(dirfd, name), attr, value, flags)
}

func removexattrAt(dirfd int, name, attr string) error {
	if name == "" {
		return unix.Removexattr(procPath(dirfd, ""), attr)
	}
	return unix.Lremovexattr(procPath(dirfd, name), attr)
}

func listxattrAt(dirfd int, b []byte) (int, error) {
	return unix.Listxattr(procPath(dirfd, ""), b)
}
