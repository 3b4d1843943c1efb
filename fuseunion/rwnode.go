package fuseunion

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A node that is only in the lower file system has no unode: its node id is its
// number plus one, and all that is kept of it is how often the kernel was told of
// it. A unode is made when the node gets a file in the upper directory, and goes
// when the kernel has forgotten it. A file that was copied up keeps its node id and
// inode number; one that was made in the upper directory has the host's inode number
// plus firstIno, as inode number, and plus 2^32, above the lower nodes, as node id.
//
// Lock order: the mu of a node, that of its parent, of its parent's parent; then a
// loc, that of the parent, and so on; then the table's and the fd cache's. Of nodes that
// are not above each other the one with the smaller id comes first.
type unode struct {
	id  uint64
	ino uint64
	low uint32 // the lower node this is or was copied up from, plus one; 0: none
	typ uint32 // S_IFMT, as shown

	// mu is held, for writing, by whoever changes the node or, of a directory, its
	// entries.
	mu    sync.RWMutex
	upper bool   // has a file in the upper directory
	host  uint64 // its inode number
	htyp  uint32 // its type, which for a device is that of a placeholder
	meta  meta
	lazy  *lazyFile // of a file that was copied up lazily, once it has been read or written
	dir   *dirState // of a directory whose entries have been read
	fresh bool      // directory that was made by a copy-up or renamed since the last fsync

	loc    sync.RWMutex
	parent *unode      // where the file is; nil when it has no name that is known, or is in the work directory
	name   string      // relative to the work directory if there is no parent
	dead   bool        // has no name any more; changed with mu held as well
	lost   atomic.Bool // has a name that is not known; the descriptor is pinned meanwhile
	index  bool        // is in the index, with any number of names
	shared bool        // is in linkDir, with any number of references

	file *openFile // guarded by the fd cache's lock

	lookups uint64 // by the kernel; guarded by the table's lock
	kids    int    // unodes with this as parent; the same
}

// inWork tells whether the file has its name in the work directory, which is none of its own.
func (n *unode) inWork() bool { return n.index || n.shared }

// lowerIndex returns the number of the lower node. It must have one.
func (n *unode) lowerIndex() uint32 { return n.low - 1 }

const shards = 64

// nodeTable finds the unodes by node id.
type nodeTable struct {
	shard [shards]struct {
		sync.Mutex
		nodes map[uint64]*unode
		refs  []uint32 // lookups of lower nodes without a unode: of number s+shards*k at k
	}
}

func (t *nodeTable) insert(n *unode) {
	s := &t.shard[n.id%shards]
	s.Lock()
	defer s.Unlock()
	if s.nodes == nil {
		s.nodes = map[uint64]*unode{}
	}
	s.nodes[n.id] = n
}

// get returns the unode of an id, or nil.
func (t *nodeTable) get(id uint64) *unode {
	s := &t.shard[id%shards]
	s.Lock()
	defer s.Unlock()
	return s.nodes[id]
}

// ref counts a lookup of a node that the kernel is about to be told of, and returns
// its unode if there is one. One that is not there is made by mk, if that is given.
func (t *nodeTable) ref(id uint64, count uint64, mk func() *unode) *unode {
	s := &t.shard[id%shards]
	s.Lock()
	defer s.Unlock()
	n := s.nodes[id]
	if n == nil && mk != nil {
		if n = mk(); s.nodes == nil {
			s.nodes = map[uint64]*unode{}
		}
		s.nodes[id] = n
		if k := (id - 1) / shards; id < maxLowerID && k < uint64(len(s.refs)) {
			n.lookups, s.refs[k] = uint64(s.refs[k]), 0
		}
	}
	switch {
	case n != nil:
		n.lookups += count
	case count > 0:
		k := (id - 1) / shards
		for uint64(len(s.refs)) <= k {
			s.refs = append(s.refs, 0)
		}
		s.refs[k] += uint32(count)
	}
	return n
}

// tryRef is ref of a node that has a unode; nil if it has none.
func (t *nodeTable) tryRef(id uint64, count uint64) *unode {
	s := &t.shard[id%shards]
	s.Lock()
	defer s.Unlock()
	n := s.nodes[id]
	if n != nil {
		n.lookups += count
	}
	return n
}

// maxLowerID is above the node ids of all lower nodes.
const maxLowerID = 1 << 32

// adopt counts a node as the parent of another one.
func (t *nodeTable) adopt(n *unode) {
	if n == nil {
		return
	}
	s := &t.shard[n.id%shards]
	s.Lock()
	n.kids++
	s.Unlock()
}

// drop takes back lookups and children. When nothing holds the unode any more it
// leaves the table and is returned.
func (t *nodeTable) drop(id uint64, lookups uint64, kids int) *unode {
	s := &t.shard[id%shards]
	s.Lock()
	defer s.Unlock()
	n := s.nodes[id]
	if n == nil {
		if k := (id - 1) / shards; id != 0 && id < maxLowerID && k < uint64(len(s.refs)) {
			s.refs[k] -= uint32(min(lookups, uint64(s.refs[k])))
		}
		return nil
	}
	n.lookups -= min(lookups, n.lookups)
	n.kids -= kids
	if n.lookups > 0 || n.kids > 0 {
		return nil
	}
	delete(s.nodes, id)
	return n
}

func (t *nodeTable) closeAll(u *Union) {
	for i := range t.shard {
		for _, n := range t.shard[i].nodes {
			if n != u.root {
				u.fds.close(n)
				u.dropLazy(n)
			}
		}
	}
}

// forget is FORGET: the kernel takes back lookups of a node.
func (u *Union) forget(id, lookups uint64) {
	if id == u.root.id {
		return
	}
	n := u.table.drop(id, lookups, 0)
	for n != nil {
		u.fds.close(n)
		u.dropLazy(n)
		n.loc.Lock()
		parent := n.parent
		if n.dead && parent == nil && n.name != "" {
			// A file that was removed while it was known. Nobody is left to tell of an
			// error; the next start cleans up.
			_ = unix.Unlinkat(u.workFD, n.name, 0)
		}
		n.loc.Unlock()
		if parent == nil {
			return
		}
		n = u.table.drop(parent.id, 0, 1)
	}
}

// node returns the unode of an id that the kernel knows, making one for a node that
// is in the lower file system only.
func (u *Union) node(id uint64) (*unode, error) {
	if n := u.table.get(id); n != nil {
		return n, nil
	}
	if id == 0 || id >= maxLowerID {
		return nil, unix.ESTALE
	}
	var low node
	if err := u.low.node(uint32(id-1), &low); err != nil {
		return nil, err
	}
	return u.table.ref(id, 0, func() *unode {
		return &unode{id: id, ino: u.low.ino(uint32(id - 1)), low: uint32(id), typ: low.mode & unix.S_IFMT}
	}), nil
}

// move records that the file of a node is now at name in parent, or, if parent is
// nil, in the work directory. The caller holds n.loc.
func (u *Union) move(n, parent *unode, name string) {
	old := n.parent
	u.table.adopt(parent)
	n.parent, n.name = parent, name
	if old != nil {
		if gone := u.table.drop(old.id, 0, 1); gone != nil {
			u.release(gone)
		}
	}
}

// release lets go of a unode that has left the table, and of parents that only it
// held.
func (u *Union) release(n *unode) {
	for n != nil {
		u.fds.close(n)
		u.dropLazy(n)
		parent := n.parent
		if parent == nil {
			return
		}
		n = u.table.drop(parent.id, 0, 1)
	}
}
