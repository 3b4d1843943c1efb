package fuseunion

import (
	"errors"

	"golang.org/x/sys/unix"
)

// renaming is one rename(2): what is where.
type renaming struct {
	u                *Union
	flags            uint32
	oldDir, newDir   *unode
	oldName, newName string
	src, dst         victim
	oldD, newD       *dirState
	oldFD, newFD     int
}

// rename moves an entry, in the ways of renameat2(2). A directory of the lower file
// system gets an upper one that knows where its content comes from: nothing below
// it is touched.
func (u *Union) rename(oldDir, newDir uint64, oldName, newName string, flags uint32) error {
	if len(newName) > maxName {
		return unix.ENAMETOOLONG
	}
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE|unix.RENAME_WHITEOUT) != 0 {
		return unix.EINVAL
	}
	r := &renaming{u: u, flags: flags, oldName: oldName, newName: newName}
	var err error
	if r.oldDir, err = u.changeable(oldDir); err != nil {
		return err
	}
	if r.newDir, err = u.changeable(newDir); err != nil {
		return err
	}
	if r.src, err = u.look(r.oldDir, oldName); err != nil {
		return err
	}
	if r.dst, err = u.look(r.newDir, newName); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	if r.src.n == r.dst.n {
		return nil // two names of one file
	}
	if err := u.copyUp(r.src.n, whole); err != nil {
		return err
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		if err := u.copyUp(r.dst.n, whole); err != nil {
			return err
		}
	}
	defer r.lock()()
	done, err := r.open()
	if err != nil {
		return err
	}
	defer done()
	if flags&unix.RENAME_EXCHANGE != 0 {
		return r.exchange()
	}
	if err := r.move(); err != nil || flags&unix.RENAME_WHITEOUT == 0 {
		return err
	}
	// A whiteout that can be seen: for an overlayfs whose upper directory is in here.
	return u.createLocked(r.oldDir, &creation{name: oldName, mode: unix.S_IFCHR}, nil)
}

// check refuses what can not be, as far as it can be seen without locks.
func (r *renaming) check() error {
	exchange := r.flags&unix.RENAME_EXCHANGE != 0
	switch {
	case r.src.n == nil, exchange && r.dst.n == nil:
		return unix.ENOENT
	case r.flags&unix.RENAME_NOREPLACE != 0 && r.dst.n != nil:
		return unix.EEXIST
	case exchange, r.dst.n == nil:
		return nil
	case r.src.n.typ == unix.S_IFDIR && r.dst.n.typ != unix.S_IFDIR:
		return unix.ENOTDIR
	case r.src.n.typ != unix.S_IFDIR && r.dst.n.typ == unix.S_IFDIR:
		return unix.EISDIR
	}
	return nil
}

// lock takes the locks of all four nodes, in their order.
func (r *renaming) lock() (unlock func()) {
	kids := inOrder(r.src.n, r.dst.n, false)
	dirs := inOrder(r.oldDir, r.newDir, r.isAbove(r.oldDir, r.newDir) || r.isAbove(r.newDir, r.oldDir))
	if len(dirs) == 2 && r.isAbove(dirs[0], dirs[1]) {
		dirs[0], dirs[1] = dirs[1], dirs[0]
	}
	all := append(kids, dirs...)
	for _, n := range all {
		n.mu.Lock()
	}
	return func() {
		for _, n := range all {
			n.mu.Unlock()
		}
	}
}

func inOrder(a, b *unode, keep bool) []*unode {
	switch {
	case b == nil || a == b:
		return []*unode{a}
	case b.id < a.id && !keep:
		return []*unode{b, a}
	}
	return []*unode{a, b}
}

// isAbove tells whether a directory is above another. The kernel lets only one
// rename between directories happen at a time, so that the answer stays true.
func (r *renaming) isAbove(a, b *unode) bool {
	for b != nil {
		b.loc.RLock()
		parent := b.parent
		b.loc.RUnlock()
		if parent == a {
			return true
		}
		b = parent
	}
	return false
}

// open reads both directories, and looks again at what a copy-up has changed.
func (r *renaming) open() (done func(), err error) {
	u := r.u
	if r.oldDir.dead || r.newDir.dead {
		return nil, unix.ENOENT
	}
	if r.oldD, err = u.dirOf(r.oldDir); err != nil {
		return nil, err
	}
	if r.newD, err = u.dirOf(r.newDir); err != nil {
		return nil, err
	}
	f, err := u.open(r.oldDir)
	if err != nil {
		return nil, err
	}
	g, err := u.open(r.newDir)
	if err != nil {
		u.fds.release(f)
		return nil, err
	}
	r.oldFD, r.newFD = f.fd, g.fd
	if _, ok := r.oldD.get(r.oldName); ok {
		r.src.upper = true
	}
	if e, ok := r.newD.get(r.newName); ok && !e.white {
		r.dst.upper = true
	}
	return func() { u.fds.release(f); u.fds.release(g) }, nil
}

// prepare makes sure that a node that is moved has a file at its name, and that at
// the other place it stays what it is.
func (r *renaming) prepare(v *victim, d *dirState, dirfd int, name string, to *unode, toName string) error {
	u := r.u
	if !v.upper {
		// It is in the index, under a lower name.
		if err := u.hostLink(v.n, dirfd, name, false); err != nil {
			return err
		}
		d.set(upperEnt{name: name, host: v.n.host, htyp: v.n.htyp, known: true, typ: v.n.typ, low: v.n.low})
		v.upper = true
		if _, err := u.lostLowerName(v.n); err != nil {
			return err
		}
	}
	if v.n.typ != unix.S_IFDIR || v.n.meta.has&metaOpaque != 0 {
		return nil
	}
	m := v.n.meta.clone()
	if i, ok := v.n.lowerDir(); ok {
		if m.has&metaOrigin == 0 {
			path, err := lowerPath(u.low, i)
			if err != nil {
				return err
			}
			m.origin, m.has = path, m.has|metaOrigin
		}
	} else if i, below, err := u.lowerChild(to, toName); err != nil {
		return err
	} else if below {
		if err := u.hide(i, &m); err != nil {
			return err
		}
	}
	if m.has == v.n.meta.has {
		return nil
	}
	return u.setMeta(v.n, m)
}

// exchange swaps two entries.
func (r *renaming) exchange() error {
	u, a, b := r.u, r.src.n, r.dst.n
	if err := r.prepare(&r.src, r.oldD, r.oldFD, r.oldName, r.newDir, r.newName); err != nil {
		return err
	}
	if err := r.prepare(&r.dst, r.newD, r.newFD, r.newName, r.oldDir, r.oldName); err != nil {
		return err
	}
	for _, n := range inOrder(a, b, false) {
		n.loc.Lock()
		defer n.loc.Unlock()
	}
	if err := r.hostExchange(); err != nil {
		return err
	}
	r.relocate(a, r.oldDir, r.oldName, r.newDir, r.newName)
	r.relocate(b, r.newDir, r.newName, r.oldDir, r.oldName)
	r.oldD.set(upperEnt{name: r.oldName, host: b.host, htyp: b.htyp, known: true, typ: b.typ, low: b.low})
	r.newD.set(upperEnt{name: r.newName, host: a.host, htyp: a.htyp, known: true, typ: a.typ, low: a.low})
	r.countDir(a, -1, +1)
	r.countDir(b, +1, -1)
	u.stale(r.oldDir, r.newDir, a, b)
	return nil
}

func (r *renaming) hostExchange() error {
	err := unix.Renameat2(r.oldFD, r.oldName, r.newFD, r.newName, unix.RENAME_EXCHANGE)
	if err == nil || !noRenameFlags(err) {
		return err
	}
	u, tmp := r.u, r.u.temp()
	if err := unix.Renameat(r.oldFD, r.oldName, u.workFD, tmp); err != nil {
		return err
	}
	if err := unix.Renameat(r.newFD, r.newName, r.oldFD, r.oldName); err != nil {
		return errors.Join(err, unix.Renameat(u.workFD, tmp, r.oldFD, r.oldName))
	}
	return unix.Renameat(u.workFD, tmp, r.newFD, r.newName)
}

// relocate notes where a file is now, if it was known by the name that it has lost.
// The caller holds n.loc.
func (r *renaming) relocate(n, from *unode, name string, to *unode, toName string) {
	if n.parent == from && n.name == name {
		r.u.move(n, to, toName)
	}
}

func (r *renaming) countDir(n *unode, inOld, inNew int) {
	if n.typ == unix.S_IFDIR {
		r.oldD.subdirs += inOld
		r.newD.subdirs += inNew
	}
}

// stale marks directories whose entries are not on disk until they are synced.
func (u *Union) stale(nodes ...*unode) {
	for _, n := range nodes {
		if n.typ == unix.S_IFDIR {
			n.fresh = true
		}
	}
}

// move is rename(2) without RENAME_EXCHANGE.
func (r *renaming) move() error {
	u, n := r.u, r.src.n
	if r.dst.n != nil {
		keep, err := r.makeRoom()
		if err != nil {
			return err
		}
		defer keep()
	}
	if err := r.prepare(&r.src, r.oldD, r.oldFD, r.oldName, r.newDir, r.newName); err != nil {
		return err
	}
	if dst := &r.dst; dst.n != nil && dst.upper {
		dst.ref = u.isRef(dst.n, r.newFD, r.newName)
	}
	n.loc.Lock()
	err := r.hostMove()
	if err == nil {
		r.relocate(n, r.oldDir, r.oldName, r.newDir, r.newName)
	}
	n.loc.Unlock()
	if err != nil {
		return err
	}
	if r.src.below {
		r.oldD.set(upperEnt{name: r.oldName, white: true, known: true})
	} else {
		r.oldD.remove(r.oldName)
	}
	r.newD.set(upperEnt{name: r.newName, host: n.host, htyp: n.htyp, known: true, typ: n.typ, low: n.low})
	r.countDir(n, -1, +1)
	u.stale(r.oldDir, r.newDir, n)
	switch {
	case r.dst.n == nil:
		return nil
	case r.dst.n.typ == unix.S_IFDIR:
		r.newD.subdirs--
		return u.deadDir(r.dst.n)
	}
	return u.lostName(r.newDir, r.newName, &r.dst)
}

// makeRoom prepares what is replaced. A directory that is empty but for whiteouts
// goes at once, since nothing can be renamed over it.
func (r *renaming) makeRoom() (done func(), err error) {
	u, dst := r.u, &r.dst
	if dst.n.typ == unix.S_IFDIR {
		empty, err := u.isEmpty(dst.n)
		if err != nil {
			return nil, err
		}
		if !empty {
			return nil, unix.ENOTEMPTY
		}
	}
	keep, err := u.hold(dst.n)
	if err != nil {
		return nil, err
	}
	if dst.n.typ == unix.S_IFDIR && dst.upper && len(dst.n.dir.byName) > 0 {
		tmp := u.temp()
		if err = unix.Renameat(r.newFD, r.newName, u.workFD, tmp); err == nil {
			err = removeAll(u.workFD, tmp)
		}
		if err != nil {
			keep()
			return nil, err
		}
	}
	return keep, nil
}

// hostMove renames the host's file, leaving a whiteout where the lower directory has
// an entry.
func (r *renaming) hostMove() error {
	u := r.u
	if !r.dst.white || r.src.n.typ != unix.S_IFDIR {
		return u.moveAway(r.oldFD, r.oldName, r.newFD, r.newName, r.src.below)
	}
	// Nothing but a directory can be replaced by one: the whiteout changes places
	// with it, and may be wanted there.
	err := unix.Renameat2(r.oldFD, r.oldName, r.newFD, r.newName, unix.RENAME_EXCHANGE)
	switch {
	case err == nil && r.src.below:
		return nil
	case err == nil:
		return unix.Unlinkat(r.oldFD, r.oldName, 0)
	case !noRenameFlags(err):
		return err
	}
	if err := unix.Unlinkat(r.newFD, r.newName, 0); err != nil {
		return err
	}
	return u.moveAway(r.oldFD, r.oldName, r.newFD, r.newName, r.src.below)
}
