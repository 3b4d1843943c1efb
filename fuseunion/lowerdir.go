package fuseunion

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Dir is a directory of the host as what a union shows below its writable layer. It
// must not change while it is open. A directory of it is read when it is first looked at.
type Dir struct {
	root  *os.File // O_PATH
	fd    int
	mu    sync.RWMutex
	nodes []dirNode
	links map[hostID]uint32 // files with several names
	files fileCache
}

type hostID struct{ dev, ino uint64 }

type dirNode struct {
	node // up is the parent of any node
	name string
	ino  uint64
	ents []dirEnt // of a directory that has been read
	read bool
}

type dirEnt struct {
	name string
	i    uint32
	typ  uint8
}

// OpenDir opens a directory to be the lower file system of a union.
func OpenDir(path string) (*Dir, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	d := &Dir{root: os.NewFile(uintptr(fd), path), fd: fd, links: map[hostID]uint32{}}
	d.files.init(256)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat %s: %w", path, err), d.root.Close())
	}
	d.nodes = []dirNode{newDirNode(0, "", &st)}
	return d, nil
}

// Close closes the directory.
func (d *Dir) Close() error { return errors.Join(d.files.close(), d.root.Close()) }

func (d *Dir) lower() lowerFS { return d }

func newDirNode(up uint32, name string, st *unix.Stat_t) dirNode {
	n := dirNode{name: name, ino: st.Ino}
	n.mode, n.uid, n.gid, n.nlink = st.Mode, st.Uid, st.Gid, uint32(st.Nlink)
	n.size, n.mtime, n.nsec = uint64(st.Size), st.Mtim.Sec, uint32(st.Mtim.Nsec)
	n.up = up
	// As new_encode_dev of the kernel has it.
	major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
	n.data = uint64(minor&0xff | major<<8 | (minor&^0xff)<<12)
	return n
}

// path returns the path of a node relative to the root. The caller holds d.mu.
func (d *Dir) path(i uint32) string {
	if i == 0 {
		return "."
	}
	var parts []string
	for ; i != 0; i = d.nodes[i].up {
		parts = append(parts, d.nodes[i].name)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// open opens a node by its path, which leads through no link and not out of the root.
func (d *Dir) open(i uint32, flags int) (int, error) {
	d.mu.RLock()
	path := d.path(i)
	d.mu.RUnlock()
	how := unix.OpenHow{Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS}
	if flags&unix.O_PATH != 0 {
		// The node itself may be a link.
		how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
	}
	for {
		fd, err := unix.Openat2(d.fd, path, &how)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
}

func (d *Dir) node(i uint32, n *node) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if uint64(i) >= uint64(len(d.nodes)) {
		return unix.ESTALE
	}
	*n = d.nodes[i].node
	return nil
}

func (d *Dir) child(dir uint32, name string) (uint32, error) {
	list, err := d.list(dir)
	if err != nil {
		return 0, err
	}
	k, ok := slices.BinarySearchFunc(list, name, func(e dirEnt, name string) int { return strings.Compare(e.name, name) })
	if !ok {
		return 0, unix.ENOENT
	}
	return list[k].i, nil
}

func (d *Dir) entries(dir uint32) (entryList, error) {
	list, err := d.list(dir)
	return dirEnts(list), err
}

type dirEnts []dirEnt

func (l dirEnts) len() int { return len(l) }

func (l dirEnts) entry(k int) (string, uint32, uint8, error) {
	return l[k].name, l[k].i, l[k].typ, nil
}

// list returns the entries of a directory, which it reads if that was not done yet.
func (d *Dir) list(dir uint32) ([]dirEnt, error) {
	d.mu.RLock()
	if uint64(dir) >= uint64(len(d.nodes)) {
		d.mu.RUnlock()
		return nil, unix.ESTALE
	}
	n := &d.nodes[dir]
	ents, read, mode := n.ents, n.read, n.mode
	d.mu.RUnlock()
	if read {
		return ents, nil
	}
	if mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, unix.ENOTDIR
	}
	fd, err := d.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	list, err := readDirents(fd)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b hostDirent) int { return strings.Compare(a.name, b.name) })
	stats := make([]unix.Stat_t, len(list))
	for k := range list {
		if err := unix.Fstatat(fd, list[k].name, &stats[k], unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
	}
	return d.add(dir, list, stats), nil
}

// add makes nodes of what a directory holds, unless another did so meanwhile.
func (d *Dir) add(dir uint32, list []hostDirent, stats []unix.Stat_t) []dirEnt {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes[dir].read {
		return d.nodes[dir].ents
	}
	ents := make([]dirEnt, len(list))
	for k := range list {
		st := &stats[k]
		id := hostID{st.Dev, st.Ino}
		i, known := d.links[id]
		if !known {
			i = uint32(len(d.nodes))
			d.nodes = append(d.nodes, newDirNode(dir, list[k].name, st))
			if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				d.links[id] = i
			}
		}
		ents[k] = dirEnt{name: list[k].name, i: i, typ: uint8(st.Mode >> 12 & 0xf)}
	}
	d.nodes[dir].ents, d.nodes[dir].read = ents, true
	return ents
}

func (d *Dir) readlink(i uint32) (string, error) {
	var n node
	if err := d.node(i, &n); err != nil {
		return "", err
	}
	if n.mode&unix.S_IFMT != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	fd, err := d.open(i, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, maxTarget+1)
	size, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:size]), nil
}

func (d *Dir) readFile(i uint32, p []byte, off uint64) (int, error) {
	f, err := d.files.acquire(i, d.open)
	if err != nil {
		return 0, err
	}
	defer d.files.release(f)
	return preadAll(f.fd, p, int64(off))
}

func (d *Dir) span(i uint32, off uint64) (span, error) {
	var low node
	if err := d.node(i, &low); err != nil || off >= low.size {
		return noSpan, err
	}
	f, err := d.files.acquire(i, d.open)
	if err != nil {
		return noSpan, err
	}
	return span{fd: f.fd, at: int64(off), n: low.size - off, done: func() { d.files.release(f) }}, nil
}

func (d *Dir) xattrs(i uint32, fn func(x xattr) bool) error {
	var n node
	if err := d.node(i, &n); err != nil {
		return err
	}
	if t := n.mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
		return nil
	}
	fd, err := d.open(i, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var names [1 << 16]byte
	size, err := listxattrAt(fd, names[:])
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 1<<16)
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		if !shown(name) {
			continue
		}
		m, err := getxattrAt(fd, "", name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return err
		}
		if !fn(xattr{name, string(value[:m])}) {
			return nil
		}
	}
	return nil
}

func (d *Dir) ino(i uint32) uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.nodes[i].ino
}

// firstIno is far above the inode numbers of most file systems, and below 2^53, so
// that programs that keep numbers in floating point can tell them apart.
func (d *Dir) firstIno() uint64 { return 1 << 52 }

func (d *Dir) place(i uint32) (dir uint32, name string, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if i == 0 || uint64(i) >= uint64(len(d.nodes)) {
		return 0, "", unix.ESTALE
	}
	return d.nodes[i].up, d.nodes[i].name, nil
}

// fileCache keeps the files open that were read last.
type fileCache struct {
	mu   sync.Mutex
	max  int
	open map[uint32]*cachedFile
	seq  uint64
}

type cachedFile struct {
	fd    int
	i     uint32
	users int
	used  uint64
	gone  bool
}

func (c *fileCache) init(max int) { c.max, c.open = max, map[uint32]*cachedFile{} }

// acquire returns the open file of node i. The caller must release it.
func (c *fileCache) acquire(i uint32, open func(uint32, int) (int, error)) (*cachedFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	if f := c.open[i]; f != nil {
		f.users++
		f.used = c.seq
		return f, nil
	}
	c.mu.Unlock()
	fd, err := open(i, unix.O_RDONLY|unix.O_NONBLOCK)
	c.mu.Lock()
	if err != nil {
		return nil, err
	}
	if f := c.open[i]; f != nil { // another was faster
		f.users++
		return f, unix.Close(fd)
	}
	if len(c.open) >= c.max {
		c.evict()
	}
	f := &cachedFile{fd: fd, i: i, users: 1, used: c.seq}
	c.open[i] = f
	return f, nil
}

// evict closes half of the files, those that were not used for longest.
func (c *fileCache) evict() {
	all := make([]*cachedFile, 0, len(c.open))
	for _, f := range c.open {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *cachedFile) int {
		if a.used < b.used {
			return -1
		}
		return 1
	})
	for _, f := range all[:len(all)/2] {
		delete(c.open, f.i)
		if f.gone = true; f.users == 0 {
			unix.Close(f.fd)
		}
	}
}

func (c *fileCache) release(f *cachedFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.users--; f.users == 0 && f.gone {
		unix.Close(f.fd)
	}
}

func (c *fileCache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, f := range c.open {
		errs = append(errs, unix.Close(f.fd))
	}
	c.open = nil
	return errors.Join(errs...)
}
