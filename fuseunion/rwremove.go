package fuseunion

import (
	"errors"

	"golang.org/x/sys/unix"
)

// victim is an entry that is about to go.
type victim struct {
	n     *unode
	upper bool // the upper directory has a file of that name
	white bool // or a whiteout
	below bool // the lower directory has one
	ref   bool // the name is a reference; found out when it goes
}

// look finds the node of a name. With none, n is nil.
func (u *Union) look(dir *unode, name string) (v victim, err error) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if dir.dead {
		return v, unix.ENOENT
	}
	d, err := u.dirOf(dir)
	if err != nil {
		return v, err
	}
	i, below, err := u.lowerChild(dir, name)
	if err != nil {
		return v, err
	}
	v.below = below
	e, ok := d.get(name)
	switch {
	case ok && e.white:
		v.white = true
	case ok:
		v.upper = true
		f, err := u.open(dir)
		if err != nil {
			return v, err
		}
		defer u.fds.release(f)
		v.n, err = u.entNode(dir, f.fd, e, 0)
		return v, err
	case below:
		if n := u.lowerRef(i); n != nil {
			u.forget(n.id, 1)
			v.n = n
		} else {
			u.forget(uint64(i)+1, 1)
		}
		if v.n == nil {
			v.n, err = u.node(uint64(i) + 1)
		}
	}
	return v, err
}

// remove is unlink(2) and rmdir(2).
func (u *Union) remove(dirID uint64, name string, rmdir bool) error {
	dir, err := u.changeable(dirID)
	if err != nil {
		return err
	}
	v, err := u.look(dir, name)
	if err != nil {
		return err
	}
	switch {
	case v.n == nil:
		return unix.ENOENT
	case rmdir && v.n.typ != unix.S_IFDIR:
		return unix.ENOTDIR
	case !rmdir && v.n.typ == unix.S_IFDIR:
		return unix.EISDIR
	}
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	dir.mu.Lock()
	defer dir.mu.Unlock()
	d, err := u.dirOf(dir)
	if err != nil {
		return err
	}
	f, err := u.open(dir)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	if rmdir {
		return u.removeDir(dir, d, f.fd, name, &v)
	}
	return u.removeFile(dir, d, f.fd, name, &v)
}

// removeFile removes the entry of a file. The caller holds the locks of both nodes.
func (u *Union) removeFile(dir *unode, d *dirState, dirfd int, name string, v *victim) error {
	keep, err := u.hold(v.n)
	if err != nil {
		return err
	}
	defer keep()
	v.ref = v.upper && u.isRef(v.n, dirfd, name)
	switch {
	case !v.upper:
		err = u.makeWhiteout(dirfd, name)
	case v.below:
		tmp := u.temp()
		if err = u.makeWhiteout(u.workFD, tmp); err == nil {
			err = unix.Renameat(u.workFD, tmp, dirfd, name)
		}
	default:
		err = unix.Unlinkat(dirfd, name, 0)
	}
	if err != nil {
		return err
	}
	if v.below {
		d.set(upperEnt{name: name, white: true, known: true})
	} else {
		d.remove(name)
	}
	return u.lostName(dir, name, v)
}

// hold opens the file of a node that may lose its last name, since nothing else
// leads to it then.
func (u *Union) hold(n *unode) (done func(), err error) {
	if !n.upper {
		return func() {}, nil
	}
	f, err := u.open(n)
	if err != nil {
		return nil, err
	}
	u.fds.pin(f)
	return func() {
		u.fds.release(f)
		n.loc.RLock()
		defer n.loc.RUnlock()
		if n.parent != nil || n.inWork() && !n.dead {
			u.fds.unpin(n)
		}
	}, nil
}

// lostName brings a node up to date that lost a name: it may have been the last.
// The caller holds both locks, and holds the file.
func (u *Union) lostName(dir *unode, name string, v *victim) error {
	n := v.n
	links := uint32(0)
	var err error
	if v.ref {
		u.lostRef(n)
	}
	if n.low != 0 && !v.upper {
		links, err = u.lostLowerName(n)
	} else if n.index {
		links = u.lowerLinks(n)
	}
	if n.upper {
		var st unix.Stat_t
		if serr := u.hostStat(n, &st); serr != nil {
			return errors.Join(err, serr)
		}
		links += u.hostLinks(n, &st)
	}
	n.loc.Lock()
	defer n.loc.Unlock()
	if links > 0 {
		if v.upper && n.parent == dir && n.name == name {
			u.move(n, nil, "")
			n.lost.Store(true)
		}
		return err
	}
	n.dead = true
	old := n.name
	u.move(n, nil, "")
	if n.index {
		u.indexMu.Lock()
		delete(u.index, n.lowerIndex())
		u.indexMu.Unlock()
		err = errors.Join(err, unix.Unlinkat(u.workFD, old, 0))
	}
	if n.shared {
		err = errors.Join(err, u.loseShared(old))
	}
	if n.upper && !u.inXattr(n.htyp) {
		err = errors.Join(err, u.ledger.forget(n.host))
	}
	return err
}

// lostLowerName notes that a lower file has lost one of its names, and returns how
// many are left.
func (u *Union) lostLowerName(n *unode) (uint32, error) {
	var low node
	if err := u.low.node(n.lowerIndex(), &low); err != nil {
		return 0, err
	}
	if low.nlink <= 1 || n.typ == unix.S_IFDIR {
		return 0, nil
	}
	path, err := lowerPath(u.low, n.lowerIndex())
	if err != nil {
		return 0, err
	}
	left := u.ledger.linksLeft(path, low.nlink)
	left -= min(left, 1)
	return left, u.ledger.setLinks(path, left)
}

// isEmpty tells whether a directory shows nothing. The caller holds n.mu.
func (u *Union) isEmpty(n *unode) (bool, error) {
	list, err := u.lowerEntries(n)
	if err != nil {
		return false, err
	}
	if !n.upper {
		return list.len() == 0, nil
	}
	d, err := u.dirOf(n)
	if err != nil {
		return false, err
	}
	for i := range d.ents {
		if !d.ents[i].gone && !d.ents[i].white {
			return false, nil
		}
	}
	if list == nil {
		return true, nil
	}
	for k := range list.len() {
		name, _, _, err := list.entry(k)
		if err != nil {
			return false, err
		}
		if _, hidden := d.byName[name]; !hidden {
			return false, nil
		}
	}
	return true, nil
}

// removeDir removes a directory that shows nothing; in the upper one whiteouts may
// be left.
func (u *Union) removeDir(dir *unode, d *dirState, dirfd int, name string, v *victim) error {
	empty, err := u.isEmpty(v.n)
	if err != nil {
		return err
	}
	if !empty {
		return unix.ENOTEMPTY
	}
	keep, err := u.hold(v.n)
	if err != nil {
		return err
	}
	defer keep()
	if err := u.removeHostDir(v, dirfd, name); err != nil {
		return err
	}
	if d.subdirs--; v.below {
		d.set(upperEnt{name: name, white: true, known: true})
	} else {
		d.remove(name)
	}
	return u.deadDir(v.n)
}

// deadDir marks a directory as removed.
func (u *Union) deadDir(n *unode) error {
	n.loc.Lock()
	defer n.loc.Unlock()
	n.dead, n.dir = true, nil
	u.move(n, nil, "")
	if n.upper && !u.inXattr(n.htyp) {
		return u.ledger.forget(n.host)
	}
	return nil
}

func (u *Union) removeHostDir(v *victim, dirfd int, name string) error {
	if !v.upper {
		return u.makeWhiteout(dirfd, name)
	}
	if !v.below && len(v.n.dir.byName) == 0 {
		return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
	}
	tmp := u.temp()
	if err := u.moveAway(dirfd, name, u.workFD, tmp, v.below); err != nil {
		return err
	}
	return removeAll(u.workFD, tmp)
}

// moveAway renames a file; what it leaves is a whiteout if white is set, in the same
// step where the file system can do that.
func (u *Union) moveAway(fromfd int, from string, tofd int, to string, white bool) error {
	if !white {
		return unix.Renameat(fromfd, from, tofd, to)
	}
	if !u.linkWhite {
		err := unix.Renameat2(fromfd, from, tofd, to, unix.RENAME_WHITEOUT)
		if err == nil || !noRenameFlags(err) {
			return err
		}
	}
	if err := unix.Renameat(fromfd, from, tofd, to); err != nil {
		return err
	}
	return u.makeWhiteout(fromfd, from)
}
