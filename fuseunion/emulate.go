package fuseunion

import (
	"encoding/binary"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Emulation has a union remember owners that are not mapped in the mount's user
// namespace, for a supervisor of the processes there: see UnionOptions.
type Emulation struct {
	// Caller returns who a process shows itself as; ok is false for one that is just
	// who the kernel says. The files that it makes are his.
	Caller func(pid uint32) (uid, gid uint32, ok bool) `json:"-"`
}

const (
	// OwnedBlksize is the st_blksize of files of an owner who is not mapped, in a union
	// that emulates: of all that stat(2) gives it is what nobody relies upon.
	OwnedBlksize = 8192
	// OwnerXattr is the Owner of a file in a union that emulates. To set it takes
	// CAP_SYS_ADMIN in the user namespace of the mount. It is not listed.
	OwnerXattr = "security.urun.owner"
)

// Owner is whose a file is.
type Owner struct {
	UID, GID uint32 // set to ^0: stays
	// Device is the number, as mknod(2) has it, of a character device; set to 0: stays.
	Device uint32
}

// Encode is the value of OwnerXattr.
func (o Owner) Encode() []byte {
	le := binary.LittleEndian
	return le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, o.UID), o.GID), o.Device)
}

// DecodeOwner is the inverse of Encode.
func DecodeOwner(b []byte) (Owner, error) {
	if len(b) != 12 {
		return Owner{}, fmt.Errorf("decode owner: %d bytes", len(b))
	}
	le := binary.LittleEndian
	return Owner{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])}, nil
}

// caller is whose the files are that a request makes.
func (u *Union) caller(h *fuse.InHeader) fuse.Owner {
	if e := u.opt.Emulate; e != nil && e.Caller != nil {
		if uid, gid, ok := e.Caller(h.Pid); ok {
			return fuse.Owner{Uid: uid, Gid: gid}
		}
	}
	return h.Owner
}

// setOwnerXattr is setxattr(2) of OwnerXattr.
func (u *Union) setOwnerXattr(id uint64, value []byte) error {
	o, err := DecodeOwner(value)
	if err != nil {
		return unix.EINVAL
	}
	n, err := u.node(id)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := u.copyUpLocked(n, whole); err != nil {
		return err
	}
	m, err := u.withOwner(n)
	if err != nil {
		return err
	}
	if o.UID != ^uint32(0) {
		m.uid = o.UID
	}
	if o.GID != ^uint32(0) {
		m.gid = o.GID
	}
	if o.Device != 0 {
		if n.typ != unix.S_IFCHR {
			return unix.EINVAL
		}
		m.rdev = o.Device
	}
	u.markOwner(&m)
	return u.setMeta(n, m)
}

// ownerXattr is getxattr(2) of OwnerXattr.
func (u *Union) ownerXattr(id uint64, dest []byte) (int, error) {
	n, i, err := u.upperNode(id)
	if err != nil {
		return 0, err
	}
	if n == nil {
		var low node
		if err := u.low.node(i, &low); err != nil {
			return 0, err
		}
		return fill(dest, Owner{low.uid, low.gid, deviceOf(low.mode, uint32(low.data))}.Encode())
	}
	defer n.mu.RUnlock()
	uid, gid, _, err := u.ownerOf(n)
	if err != nil {
		return 0, err
	}
	return fill(dest, Owner{uid, gid, deviceOf(n.typ, n.meta.rdev)}.Encode())
}

func deviceOf(mode, rdev uint32) uint32 {
	if mode&unix.S_IFMT != unix.S_IFCHR {
		return 0
	}
	return rdev
}

// blksize marks files whose owner is not what is shown of them.
func (m *idMap) blksize(uid, gid, typ uint32, a *fuse.Attr) uint32 {
	if m.emulate && (a.Uid != uid || a.Gid != gid || typ == unix.S_IFCHR) {
		return OwnedBlksize
	}
	return 4096
}
