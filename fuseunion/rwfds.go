package fuseunion

import (
	"sync"

	"golang.org/x/sys/unix"
)

// openFile is a descriptor of a node's file: O_RDWR of regular files, else O_PATH.
type openFile struct {
	fd         int
	n          *unode
	users      int
	pinned     bool // not to be closed, since nothing leads to the file any more
	prev, next *openFile
}

// fdCache bounds the number of open descriptors: the one that has not been used
// for the longest time is closed.
type fdCache struct {
	mu    sync.Mutex
	max   int
	count int
	ring  openFile // of those that may be closed; ring.next was used last
}

func (c *fdCache) unlink(f *openFile) {
	if f.prev != nil {
		f.prev.next, f.next.prev = f.next, f.prev
		f.prev, f.next = nil, nil
	}
}

func (c *fdCache) link(f *openFile) {
	if c.ring.next == nil {
		c.ring.next, c.ring.prev = &c.ring, &c.ring
	}
	f.prev, f.next = &c.ring, c.ring.next
	f.prev.next, f.next.prev = f, f
}

// acquire returns the node's descriptor if it is open. The caller must release it.
func (c *fdCache) acquire(n *unode) *openFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := n.file
	if f != nil {
		f.users++
		c.unlink(f)
	}
	return f
}

// add makes fd the node's descriptor, or closes it if there is one already, and
// acquires it.
func (c *fdCache) add(n *unode, fd int) *openFile {
	c.mu.Lock()
	f := n.file
	extra, victim := -1, -1
	if f == nil {
		f = &openFile{fd: fd, n: n}
		n.file = f
		if c.count++; c.count > c.max {
			victim = c.evict()
		}
	} else {
		extra = fd
		c.unlink(f)
	}
	f.users++
	c.mu.Unlock()
	for _, fd := range []int{extra, victim} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return f
}

// evict takes the descriptor out that has been unused longest; -1 if all are used.
func (c *fdCache) evict() int {
	f := c.ring.prev
	if f == nil || f == &c.ring {
		return -1
	}
	c.unlink(f)
	f.n.file = nil
	c.count--
	return f.fd
}

func (c *fdCache) release(f *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.users--; f.users == 0 && !f.pinned && f.n.file == f {
		c.link(f)
	}
	if f.users == 0 && f.n.file != f {
		unix.Close(f.fd)
	}
}

// pin keeps an acquired descriptor open until the node is forgotten.
func (c *fdCache) pin(f *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.pinned = true
}

// unpin undoes pin.
func (c *fdCache) unpin(n *unode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := n.file; f != nil && f.pinned {
		if f.pinned = false; f.users == 0 {
			c.link(f)
		}
	}
}

// close closes the descriptor of a node, at its last release if it is in use.
func (c *fdCache) close(n *unode) {
	c.mu.Lock()
	f := n.file
	n.file = nil
	fd := -1
	if f != nil {
		c.count--
		c.unlink(f)
		if f.users == 0 {
			fd = f.fd
		}
	}
	c.mu.Unlock()
	if fd >= 0 {
		unix.Close(fd)
	}
}

// reclaim closes a descriptor after an EMFILE; false if there is none to close.
func (c *fdCache) reclaim() bool {
	c.mu.Lock()
	fd := c.evict()
	c.mu.Unlock()
	if fd < 0 {
		return false
	}
	return unix.Close(fd) == nil
}

// open returns a descriptor of a node's file in the upper directory, which the
// caller must release.
func (u *Union) open(n *unode) (*openFile, error) {
	if f := u.fds.acquire(n); f != nil {
		return f, nil
	}
	n.loc.RLock()
	defer n.loc.RUnlock()
	return u.openLocked(n)
}

// openLocked is open for a caller that holds n.loc.
func (u *Union) openLocked(n *unode) (*openFile, error) {
	if f := u.fds.acquire(n); f != nil {
		return f, nil
	}
	dirfd, done, err := u.container(n)
	if err != nil {
		return nil, err
	}
	defer done()
	flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if n.typ == unix.S_IFREG {
		flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	}
	for {
		fd, err := unix.Openat(dirfd, n.name, flags, 0)
		if (err == unix.EMFILE || err == unix.ENFILE) && u.fds.reclaim() {
			continue
		}
		if err != nil {
			return nil, err
		}
		return u.fds.add(n, fd), nil
	}
}

// container returns the directory that n.name is relative to. The caller holds
// n.loc and calls done when it has used it.
func (u *Union) container(n *unode) (dirfd int, done func(), err error) {
	if n.parent == nil {
		if n.name == "" {
			return -1, nil, unix.ESTALE
		}
		return u.workFD, func() {}, nil
	}
	f, err := u.open(n.parent)
	if err != nil {
		return -1, nil, err
	}
	return f.fd, func() { u.fds.release(f) }, nil
}
