package fuseunion

import (
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	aclAccess  = aclPrefix + "access"
	aclDefault = aclPrefix + "default"

	userPrefix    = "user."
	overlayPrefix = "user.overlay."
	// Names of the mount that the union or an overlayfs would take for its own are
	// kept under these; the second as overlayfs does it (Linux 6.7).
	escapedUnion   = metaPrefix + "escaped."
	escapedOverlay = overlayPrefix + "overlay."
)

// hostXattr returns the name under which the host keeps an attribute of a file of
// that host type; false if it does not.
func (u *Union) hostXattr(name string, htyp uint32) (string, bool) {
	if !strings.HasPrefix(name, userPrefix) || !u.inXattr(htyp) {
		return "", false
	}
	if rest, ok := strings.CutPrefix(name, metaPrefix); ok {
		return escapedUnion + rest, true
	}
	if rest, ok := strings.CutPrefix(name, overlayPrefix); ok {
		return escapedOverlay + rest, true
	}
	return name, true
}

// mountXattr undoes hostXattr; false for a name that the mount does not show.
func mountXattr(name string) (string, bool) {
	if !strings.HasPrefix(name, userPrefix) {
		return "", false
	}
	if rest, ok := strings.CutPrefix(name, escapedUnion); ok {
		return metaPrefix + rest, true
	}
	if rest, ok := strings.CutPrefix(name, escapedOverlay); ok {
		return overlayPrefix + rest, true
	}
	if strings.HasPrefix(name, metaPrefix) || strings.HasPrefix(name, overlayPrefix) {
		return "", false
	}
	return name, true
}

// upperNode returns the unode of an id if it has an upper file, with its mu held for
// reading; else the number of the lower node.
func (u *Union) upperNode(id uint64) (n *unode, i uint32, err error) {
	if n = u.table.get(id); n != nil {
		n.mu.RLock()
		if n.upper {
			return n, 0, nil
		}
		n.mu.RUnlock()
	}
	if id == 0 || id >= maxLowerID {
		return nil, 0, unix.ESTALE
	}
	return nil, uint32(id - 1), nil
}

// getXattr calls fn with the value of an attribute.
func (u *Union) getXattr(id uint64, name string, dest []byte) (int, error) {
	n, i, err := u.upperNode(id)
	if err != nil {
		return 0, err
	}
	if n == nil {
		return u.lowerXattr(i, name, dest)
	}
	defer n.mu.RUnlock()
	host, ok := u.hostXattr(name, n.htyp)
	if !ok {
		v, ok := n.meta.xattrs[name]
		if !ok {
			return 0, unix.ENODATA
		}
		return fill(dest, v)
	}
	f, err := u.open(n)
	if err != nil {
		return 0, err
	}
	defer u.fds.release(f)
	if len(dest) == 0 {
		return getxattrAt(f.fd, "", host, nil)
	}
	return getxattrAt(f.fd, "", host, dest)
}

func fill(dest, value []byte) (int, error) {
	if len(dest) == 0 {
		return len(value), nil
	}
	if len(value) > len(dest) {
		return len(value), unix.ERANGE
	}
	return copy(dest, value), nil
}

func (u *Union) lowerXattr(i uint32, name string, dest []byte) (int, error) {
	if !shown(name) {
		return 0, unix.ENODATA
	}
	var value []byte
	found := false
	if err := u.low.xattrs(i, func(x xattr) bool {
		if found = x.name == name; found {
			value = []byte(x.value)
		}
		return !found
	}); err != nil {
		return 0, err
	}
	if !found {
		return 0, unix.ENODATA
	}
	return fill(dest, value)
}

// listXattr fills dest with the names of a node's attributes, each with a NUL.
func (u *Union) listXattr(id uint64, dest []byte) (int, error) {
	n, i, err := u.upperNode(id)
	if err != nil {
		return 0, err
	}
	var names []byte
	if n == nil {
		err := u.low.xattrs(i, func(x xattr) bool {
			if shown(x.name) {
				names = append(append(names, x.name...), 0)
			}
			return true
		})
		if err != nil {
			return 0, err
		}
		return fill(dest, names)
	}
	defer n.mu.RUnlock()
	for _, name := range slices.Sorted(maps.Keys(n.meta.xattrs)) {
		names = append(append(names, name...), 0)
	}
	if !u.inXattr(n.htyp) {
		return fill(dest, names)
	}
	f, err := u.open(n)
	if err != nil {
		return 0, err
	}
	defer u.fds.release(f)
	var host [1 << 16]byte // XATTR_LIST_MAX
	m, err := listxattrAt(f.fd, host[:])
	if err != nil {
		return 0, err
	}
	for name := range strings.SplitSeq(string(host[:m]), "\x00") {
		if name, ok := mountXattr(name); ok {
			names = append(append(names, name...), 0)
		}
	}
	return fill(dest, names)
}

// setXattr sets an attribute, or removes it if value is nil. killSetGID comes with an
// ACL that is set by somebody who is not of the file's group.
func (u *Union) setXattr(id uint64, name string, value []byte, flags int, killSetGID bool) error {
	n, err := u.node(id)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.upper && value == nil {
		// What is not there needs no copy-up to be removed.
		if _, err := u.lowerXattr(n.lowerIndex(), name, nil); err != nil {
			return err
		}
	}
	if err := u.copyUpLocked(n, whole); err != nil {
		return err
	}
	if host, ok := u.hostXattr(name, n.htyp); ok {
		f, err := u.open(n)
		if err != nil {
			return err
		}
		defer u.fds.release(f)
		if value == nil {
			return removexattrAt(f.fd, "", host)
		}
		return setxattrAt(f.fd, "", host, value, flags)
	}
	_, there := n.meta.xattrs[name]
	switch {
	case value == nil && !there, flags&unix.XATTR_REPLACE != 0 && !there:
		return unix.ENODATA
	case flags&unix.XATTR_CREATE != 0 && there:
		return unix.EEXIST
	}
	m, err := u.withOwner(n)
	if err != nil {
		return err
	}
	if name == aclAccess && value != nil {
		equivalent, err := modeOfACL(&m, value)
		if err != nil {
			return err
		}
		if equivalent {
			value = nil
		}
		if killSetGID {
			m.mode &^= unix.S_ISGID
		}
	}
	m.setXattr(name, slices.Clone(value))
	return u.setModeMeta(n, m)
}
