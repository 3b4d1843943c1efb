package files

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/archive"
)

// newRoot is a container's tree, with the owners that its union remembers.
func newRoot(dir *os.File) *archive.Root {
	r := archive.NewRoot(dir)
	r.Remembered(remembered)
	return r
}

// remembered puts the owner that is not mapped into what stat(2) says of a file.
func remembered(path string, open bool, st *unix.Stat_t) error {
	if int64(st.Blksize) != fuseunion.OwnedBlksize {
		return nil
	}
	get := unix.Lgetxattr
	if open {
		get = unix.Getxattr
	}
	buf := make([]byte, 64)
	n, err := get(path, fuseunion.OwnerXattr, buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // some other file system has blocks of that size
	}
	if err != nil {
		return err
	}
	o, err := fuseunion.DecodeOwner(buf[:n])
	if err != nil {
		return err
	}
	st.Uid, st.Gid = o.UID, o.GID
	if st.Mode&unix.S_IFMT == unix.S_IFCHR {
		st.Rdev = uint64(o.Device)
	}
	return nil
}
