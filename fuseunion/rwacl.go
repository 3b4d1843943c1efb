package fuseunion

import (
	"encoding/binary"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// POSIX ACLs as the kernel stores them: a version, then entries of tag, permissions
// and id (linux/posix_acl_xattr.h).
const (
	aclVersion   = 2
	aclUserObj   = 0x01
	aclGroupObj  = 0x04
	aclMask      = 0x10
	aclOther     = 0x20
	aclEntrySize = 8
)

var errACL = errors.New("malformed POSIX ACL")

// aclEntries calls fn for each entry of an ACL; perm points into it.
func aclEntries(acl []byte, fn func(tag uint16, perm []byte)) error {
	if len(acl) < 4 || (len(acl)-4)%aclEntrySize != 0 || binary.LittleEndian.Uint32(acl) != aclVersion {
		return errACL
	}
	for b := acl[4:]; len(b) > 0; b = b[aclEntrySize:] {
		fn(binary.LittleEndian.Uint16(b), b[2:4])
	}
	return nil
}

// inheritACL gives a new file what its directory's default ACL says, or else applies
// the umask: posix_acl_create(9).
func inheritACL(m *meta, def []byte, umask uint32) error {
	if def == nil {
		m.mode &^= umask & 0o777
		return nil
	}
	acl := slices.Clone(def)
	mask, extended := false, false
	err := aclEntries(acl, func(tag uint16, _ []byte) {
		mask = mask || tag == aclMask
		extended = extended || tag != aclUserObj && tag != aclGroupObj && tag != aclOther
	})
	if err != nil {
		return err
	}
	err = aclEntries(acl, func(tag uint16, perm []byte) {
		shift, ok := aclShift(tag, mask)
		if !ok {
			return
		}
		p := uint32(binary.LittleEndian.Uint16(perm)) & (m.mode >> shift & 7)
		binary.LittleEndian.PutUint16(perm, uint16(p))
		m.mode = m.mode&^(7<<shift) | p<<shift
	})
	if extended {
		m.setXattr(aclAccess, acl)
	}
	if m.mode&unix.S_IFMT == unix.S_IFDIR {
		m.setXattr(aclDefault, slices.Clone(def))
	}
	return err
}

// aclShift tells which bits of the mode stand for an entry: the group's for the mask,
// if there is one.
func aclShift(tag uint16, mask bool) (shift int, ok bool) {
	switch {
	case tag == aclUserObj:
		return 6, true
	case tag == aclOther:
		return 0, true
	case tag == aclMask, tag == aclGroupObj && !mask:
		return 3, true
	}
	return 0, false
}

// chmodACL brings the access ACL, if there is one, in line with a changed mode.
func chmodACL(m *meta) error {
	old, ok := m.xattrs[aclAccess]
	if !ok {
		return nil
	}
	acl, mask := slices.Clone(old), false
	if err := aclEntries(acl, func(tag uint16, _ []byte) { mask = mask || tag == aclMask }); err != nil {
		return err
	}
	m.xattrs[aclAccess] = acl
	return aclEntries(acl, func(tag uint16, perm []byte) {
		if shift, ok := aclShift(tag, mask); ok {
			binary.LittleEndian.PutUint16(perm, uint16(m.mode>>shift&7))
		}
	})
}

// modeOfACL sets the mode's bits to what an access ACL says, and tells whether they
// say all of it.
func modeOfACL(m *meta, acl []byte) (equivalent bool, err error) {
	mask := false
	equivalent = true
	if err := aclEntries(acl, func(tag uint16, _ []byte) {
		mask = mask || tag == aclMask
		equivalent = equivalent && (tag == aclUserObj || tag == aclGroupObj || tag == aclOther)
	}); err != nil {
		return false, err
	}
	err = aclEntries(acl, func(tag uint16, perm []byte) {
		if shift, ok := aclShift(tag, mask); ok {
			m.mode = m.mode&^(7<<shift) | uint32(binary.LittleEndian.Uint16(perm)&7)<<shift
		}
	})
	return equivalent, err
}
