package fuseunion

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// statNode returns the unode of an id or, if there is none, the number of the lower
// node.
func (u *Union) statNode(id uint64) (n *unode, i uint32, err error) {
	if n = u.table.get(id); n != nil {
		return n, 0, nil
	}
	if id == 0 || id >= maxLowerID {
		return nil, 0, unix.ESTALE
	}
	return nil, uint32(id - 1), nil
}

// lookup finds a name in a directory and tells the kernel of it; of one that is not
// there by node id 0, a negative entry that may be kept.
func (u *Union) lookup(dirID uint64, name string, out *fuse.EntryOut) error {
	if len(name) > maxName {
		return unix.ENAMETOOLONG
	}
	n, i, found, err := u.find(dirID, name)
	switch {
	case err != nil:
		return err
	case !found:
		out.EntryValid = forever
		return nil
	case n == nil:
		err = u.lowerEntry(i, out)
	default:
		i = uint32(n.id - 1)
		err = u.entry(n, out)
	}
	if err != nil {
		id := uint64(i) + 1
		if n != nil {
			id = n.id
		}
		u.forget(id, 1)
	}
	return err
}

// find looks a name up and counts the lookup: of a unode, or else of a lower node.
func (u *Union) find(dirID uint64, name string) (n *unode, i uint32, found bool, err error) {
	dir, i, err := u.statNode(dirID)
	if err != nil {
		return nil, 0, false, err
	}
	if dir == nil {
		return u.findLower(i, name)
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if dir.dead {
		return nil, 0, false, nil
	}
	if dir.typ != unix.S_IFDIR {
		return nil, 0, false, unix.ENOTDIR
	}
	if dir.upper {
		d, err := u.dirOf(dir)
		if err != nil {
			return nil, 0, false, err
		}
		if e, ok := d.get(name); ok {
			if e.white {
				return nil, 0, false, nil
			}
			f, err := u.open(dir)
			if err != nil {
				return nil, 0, false, err
			}
			defer u.fds.release(f)
			n, err = u.entNode(dir, f.fd, e, 1)
			return n, 0, err == nil, err
		}
	}
	if i, ok := dir.lowerDir(); ok {
		return u.findLower(i, name)
	}
	return nil, 0, false, nil
}

func (u *Union) findLower(dir uint32, name string) (n *unode, i uint32, found bool, err error) {
	i, err = u.low.child(dir, name)
	if u.ahead != nil {
		u.ahead.lookup(dir, foundNode(i, err))
	}
	if err == unix.ENOENT {
		return nil, 0, false, nil
	}
	if err != nil {
		return nil, 0, false, err
	}
	return u.lowerRef(i), i, true, nil
}

func (u *Union) readlink(id uint64) (string, error) {
	n, i, err := u.upperNode(id)
	if err != nil {
		return "", err
	}
	if n == nil {
		return u.low.readlink(i)
	}
	defer n.mu.RUnlock()
	if n.typ != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	f, err := u.open(n)
	if err != nil {
		return "", err
	}
	defer u.fds.release(f)
	buf := make([]byte, maxTarget+1)
	size, err := unix.Readlinkat(f.fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:size]), nil
}
