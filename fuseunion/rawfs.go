package fuseunion

import (
	"errors"
	"math"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// forever is how long, in seconds, the kernel may keep what it is told.
const forever = math.MaxInt32

// rawFS answers requests from a tree. It has no state but what push and ahead have: a node's id is its
// inode number.
type rawFS struct {
	fuse.RawFileSystem // ENOSYS to the rest
	t                  *Tree
	opt                ServeOptions
	push               *pusher // nil where nothing is pushed
	ahead              *ahead  // nil where nobody lists directories
}

func newRawFS(t *Tree, opt ServeOptions) *rawFS {
	return &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), t: t, opt: opt}
}

func (r *rawFS) String() string { return "urun" }

func mapID(id uint32, ranges []IDRange, squash uint32) uint32 {
	if len(ranges) == 0 {
		return id
	}
	for _, x := range ranges {
		if id >= x.First && id-x.First < x.Count {
			return id
		}
	}
	return squash
}

// status turns an error into what the kernel is told: damage is EIO.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

func (r *rawFS) attr(i uint32, n *node, a *fuse.Attr) {
	a.Ino = uint64(i) + 1
	a.Size = n.size
	a.Blocks = (n.size + 511) / 512
	a.Mtime, a.Mtimensec = uint64(n.mtime), n.nsec
	a.Ctime, a.Ctimensec = a.Mtime, a.Mtimensec
	a.Atime, a.Atimensec = a.Mtime, a.Mtimensec
	a.Mode = n.mode
	a.Nlink = n.nlink
	a.Uid = mapID(n.uid, r.opt.UIDs, r.opt.SquashUID)
	a.Gid = mapID(n.gid, r.opt.GIDs, r.opt.SquashGID)
	a.Blksize = 4096
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		a.Size, a.Blocks = 4096, 8
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Rdev = uint32(n.data)
	case unix.S_IFLNK:
		a.Blocks = 0
	}
}

func (r *rawFS) entry(i uint32, n *node, out *fuse.EntryOut) {
	out.NodeId = uint64(i) + 1
	out.EntryValid, out.AttrValid = forever, forever
	r.attr(i, n, &out.Attr)
}

func (r *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := r.t.byIno(h.NodeId)
	if err != nil {
		return status(err)
	}
	if dir.mode&unix.S_IFMT != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	if len(name) > maxName {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	i, err := r.t.child(&dir, name)
	if r.ahead != nil {
		r.ahead.lookup(uint32(h.NodeId-1), foundNode(i, err))
	}
	if err == unix.ENOENT {
		// Node id 0 is a negative entry that may be kept.
		out.EntryValid = forever
		return fuse.OK
	}
	if err != nil {
		return status(err)
	}
	var n node
	if err := r.t.m.node(i, &n); err != nil {
		return status(err)
	}
	r.entry(i, &n, out)
	return fuse.OK
}

// foundNode is what ahead is told of a lookup.
func foundNode(i uint32, err error) uint32 {
	if err != nil {
		return noNode
	}
	return i
}

func (r *rawFS) Forget(_, _ uint64) {}

func (r *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := r.t.byIno(in.NodeId)
	if err != nil {
		return status(err)
	}
	out.AttrValid = forever
	r.attr(uint32(in.NodeId-1), &n, &out.Attr)
	return fuse.OK
}

func (r *rawFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := r.t.byIno(h.NodeId)
	if err != nil {
		return nil, status(err)
	}
	s, err := r.t.readlink(&n)
	return []byte(s), status(err)
}

// Open and OpenDir: ENOSYS tells the kernel, once, that it need not ask, and that
// it may keep what it has cached from one open to the next (fuse_file_open).
func (r *rawFS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

func (r *rawFS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := r.t.byIno(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	if n.mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fuse.EINVAL
	}
	got, err := r.t.readAt(&n, buf[:min(len(buf), int(in.Size))], in.Offset)
	if err != nil {
		return nil, status(err)
	}
	if r.push != nil {
		r.push.read(uint32(in.NodeId-1), &n, in.Offset, int(in.Size))
	}
	return readResult(got), fuse.OK
}

// readResult is a result that lies in the reply buffer already.
type readResult int

func (n readResult) Bytes(buf []byte) ([]byte, fuse.Status) { return buf[:n], fuse.OK }
func (n readResult) Readv(_ [][]byte) (int, fuse.Status)    { return int(n), fuse.OK }
func (n readResult) Size() int                              { return int(n) }
func (n readResult) Done()                                  {}

// list returns the entries of a directory from offset on.
func (r *rawFS) list(in *fuse.ReadIn) (l direntList, self node, err error) {
	if self, err = r.t.byIno(in.NodeId); err != nil {
		return l, self, err
	}
	if self.mode&unix.S_IFMT != unix.S_IFDIR {
		return l, self, unix.ENOTDIR
	}
	l, err = r.t.m.dirents(&self)
	return l, self, err
}

// Offsets: 1 is behind ".", 2 behind "..", 2+i behind entry i-1.
func (r *rawFS) dots(in *fuse.ReadIn, self *node, add func(fuse.DirEntry) bool) (next uint64, ok bool) {
	next = in.Offset
	if next == 0 {
		if !add(fuse.DirEntry{Mode: unix.S_IFDIR, Name: ".", Ino: in.NodeId, Off: 1}) {
			return next, false
		}
		next = 1
	}
	if next == 1 {
		if !add(fuse.DirEntry{Mode: unix.S_IFDIR, Name: "..", Ino: uint64(self.up) + 1, Off: 2}) {
			return next, false
		}
		next = 2
	}
	return next - 2, true
}

func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	list, self, err := r.list(in)
	if err != nil {
		return status(err)
	}
	i, ok := r.dots(in, &self, out.AddDirEntry)
	var d dirent
	for ; ok && i < uint64(list.len()); i++ {
		name, err := list.get(int(i), &d)
		if err != nil {
			return status(err)
		}
		ok = out.AddDirEntry(fuse.DirEntry{Mode: uint32(d.typ) << 12, Name: name, Ino: uint64(d.node) + 1, Off: i + 3})
	}
	return fuse.OK
}

func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	list, self, err := r.list(in)
	if err != nil {
		return status(err)
	}
	// The kernel ignores the attributes of the dots: node id 0 says there are none.
	i, ok := r.dots(in, &self, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
	if r.push != nil && ok && i > 0 && i == uint64(list.len()) {
		r.push.listed(uint32(in.NodeId - 1))
	}
	bare := r.ahead != nil && r.ahead.bare(uint32(in.NodeId-1), in.Offset)
	var d dirent
	var n node
	for ; ok && i < uint64(list.len()); i++ {
		name, err := list.get(int(i), &d)
		if err != nil {
			return status(err)
		}
		e := out.AddDirLookupEntry(fuse.DirEntry{Mode: uint32(d.typ) << 12, Name: name, Ino: uint64(d.node) + 1, Off: i + 3})
		if e == nil {
			break
		}
		if bare && d.typ != unix.DT_DIR {
			continue // node id 0: no attributes
		}
		if err := r.t.m.node(d.node, &n); err != nil {
			return status(err)
		}
		r.entry(d.node, &n, e)
	}
	return fuse.OK
}

func (r *rawFS) Release(<-chan struct{}, *fuse.ReleaseIn) {}
func (r *rawFS) ReleaseDir(*fuse.ReleaseIn)               {}

// Flush is answered with ENOSYS: the kernel asks once and no more.
func (r *rawFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

func (r *rawFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize = 4096, 4096
	out.Blocks = (r.t.m.hdr.content + 4095) / 4096
	out.Files = uint64(r.t.m.hdr.nodes)
	out.NameLen = maxName
	return fuse.OK
}

// selinuxXattr is never there. ls(1) asks for it for every file, each time, unless
// it is told once that a file system does not have it at all.
const selinuxXattr = "security.selinux"

// shown says which attributes of a layer the mount has: see Serve.
func shown(name string) bool {
	switch {
	case strings.HasPrefix(name, "user."):
		return !strings.HasPrefix(name, "user.overlay.")
	case name == "security.capability", strings.HasPrefix(name, aclPrefix):
		return true
	}
	return false
}

func (r *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n, err := r.t.byIno(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	if name == selinuxXattr {
		return 0, fuse.Status(unix.EOPNOTSUPP)
	}
	if n.xattr == 0 || !shown(name) {
		return 0, fuse.ENOATTR
	}
	value, found := "", false
	if err := r.t.m.xattrs(&n, func(x xattr) bool {
		if found = x.name == name; found {
			value = x.value
		}
		return !found
	}); err != nil {
		return 0, status(err)
	}
	switch {
	case !found:
		return 0, fuse.ENOATTR
	case len(value) > len(dest):
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

func (r *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, err := r.t.byIno(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	size := 0
	if err := r.t.m.xattrs(&n, func(x xattr) bool {
		if shown(x.name) {
			if size+len(x.name)+1 <= len(dest) {
				copy(dest[size:], x.name)
				dest[size+len(x.name)] = 0
			}
			size += len(x.name) + 1
		}
		return true
	}); err != nil {
		return 0, status(err)
	}
	if size > len(dest) {
		return uint32(size), fuse.ERANGE
	}
	return uint32(size), fuse.OK
}

// Lseek is answered with ENOSYS, after which the kernel takes files to have no holes.
func (r *rawFS) Lseek(<-chan struct{}, *fuse.LseekIn, *fuse.LseekOut) fuse.Status { return fuse.ENOSYS }
