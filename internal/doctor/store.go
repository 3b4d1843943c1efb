package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/cure"
)

// observeStore looks at the file system of the store and makes a scratch
// directory on it for the stage; "" where nothing can be written.
func (o *Observation) observeStore(dir, images string) (scratch string, err error) {
	o.Store.Dir = dir
	if images != dir {
		// Somebody else's, who has put images into it; or nobody's.
		if _, err := os.Stat(filepath.Join(images, "version")); err != nil {
			o.Store.Dir, o.Store.Err = images, fmt.Errorf("it can not be written, and holds no images: %w", err)
			o.Store.Cure = cure.Store(cmp.Or(unix.Access(images, unix.W_OK), err), images)
			return "", nil
		}
	}
	at, err := nearest(dir)
	if err != nil {
		o.Store.fail(err)
		return "", nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return "", fmt.Errorf("statfs %s: %w", at, err)
	}
	o.Store.Type = fsName(int64(st.Type))
	o.Store.FreeBytes = st.Bavail * uint64(st.Bsize)
	o.Store.FreeInodes, o.Store.NoInodes = st.Ffree, st.Files == 0
	if scratch, err = os.MkdirTemp(at, ".urun-doctor-"); err != nil {
		o.Store.fail(err)
		return "", nil
	}
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(scratch, name), 0o755); err != nil {
			o.Store.fail(err)
			break
		}
	}
	if o.Store.Err == nil {
		// What a full disk or a quota refuses is not the directory, but what is in it.
		if err := os.WriteFile(filepath.Join(scratch, "data"), make([]byte, atLeast), 0o600); err != nil {
			o.Store.fail(err)
		}
	}
	return scratch, nil
}

// fail says why the store can not be used, and what helps.
func (s *Store) fail(err error) { s.Err, s.Cure = err, cure.Store(err, s.Dir) }

// atLeast is what a container's records and the files of its start take, in bytes.
const atLeast = 256 << 10

// nearest returns the lowest directory on the way to dir that exists.
func nearest(dir string) (string, error) {
	for {
		fi, err := os.Stat(dir)
		if err == nil && !fi.IsDir() {
			return "", &fs.PathError{Op: "open", Path: dir, Err: unix.ENOTDIR}
		}
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}

// removeScratch removes what the stage has left; overlayfs's work directory has
// one that nobody may enter.
func removeScratch(dir string) error {
	err := os.Chmod(filepath.Join(dir, "work", "work"), 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// fsName is the name of a file system by its number in statfs(2).
func fsName(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.NFS_SUPER_MAGIC: "nfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.FUSE_SUPER_MAGIC: "fuse", unix.F2FS_SUPER_MAGIC: "f2fs",
		unix.RAMFS_MAGIC: "ramfs", unix.SMB2_SUPER_MAGIC: "smb", 0x0bd00bd0: "lustre", 0x47504653: "gpfs", 0x19830326: "beegfs",
		0x2fc12fc1: "zfs", unix.CEPH_SUPER_MAGIC: "ceph", 0x5346544e: "ntfs", unix.MSDOS_SUPER_MAGIC: "vfat", unix.AFS_SUPER_MAGIC: "afs",
	}
	if name, ok := names[magic]; ok {
		return name
	}
	return fmt.Sprintf("%#x", magic)
}
