package fuseunion

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// Left counts what of a tree the file system that it was unpacked to could not take.
type Left struct {
	Devices    int // device nodes, which root of a user namespace cannot make (mknod(2))
	Owners     int // files that belong to another id than they should
	Attributes int // extended attributes
}

// Words says it in words, "" for nothing.
func (l Left) Words() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{l.Devices, "device nodes left out"}, {l.Owners, "files with another owner"}, {l.Attributes, "extended attributes left out"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%s: %d", p.what, p.n))
		}
	}
	return strings.Join(parts, ", ")
}

// Unpack writes a tree, or a copy of a directory, into the empty directory dir as
// plain files, for where no FUSE mount can be had. Owners are shown ids of opt, as Serve
// would show them. Content is shared with the source where both lie on a file
// system that can (reflink), else copied within the kernel where that is possible.
// It brings nothing to disk, and what it has written when it fails stays.
//
// Nothing of the tree is followed on the way: each name is made in its parent's open directory.
func Unpack(low Lower, dir string, opt ServeOptions) (Left, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Left{}, &fs.PathError{Op: "unpack", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	u := &unpacker{low: low.lower(), opt: opt, root: fd, names: map[uint32]string{}}
	var n node
	err = u.low.node(0, &n)
	if err == nil {
		err = u.directory(fd, "", 0, &n)
	}
	if err != nil {
		return u.left, fmt.Errorf("unpack into %s: %w", dir, err)
	}
	return u.left, nil
}

type unpacker struct {
	low   lowerFS
	opt   ServeOptions
	root  int               // the directory
	names map[uint32]string // where a file with several names has been made
	left  Left
}

// directory fills a directory that is open, and then gives it what it has of its own:
// its times change with its content.
func (u *unpacker) directory(fd int, name string, i uint32, n *node) error {
	list, err := u.low.entries(i)
	if err != nil {
		return inTree(name, err)
	}
	for k := range list.len() {
		base, child, _, err := list.entry(k)
		if err != nil {
			return inTree(name, err)
		}
		if base == "" || base == "." || base == ".." || strings.ContainsAny(base, "/\x00") {
			return inTree(name, errRecord)
		}
		below := strings.Clone(base)
		if name != "" {
			below = name + "/" + below
		}
		if err := u.entry(fd, below, below[len(below)-len(base):], child); err != nil {
			return err
		}
	}
	err = u.settle(fd, i, n)
	if err == nil {
		err = unix.UtimesNanoAt(fd, ".", mtime(n), 0)
	}
	return inTree(name, err)
}

// inTree says where in the tree it was, unless what went wrong below has said it.
func inTree(name string, err error) error {
	var said *fs.PathError
	if err == nil || errors.As(err, &said) {
		return err
	}
	return &fs.PathError{Op: "make", Path: "/" + name, Err: err}
}

// entry makes what is at a name.
func (u *unpacker) entry(parent int, name, base string, i uint32) error {
	var n node
	if err := u.low.node(i, &n); err != nil {
		return inTree(name, err)
	}
	if n.mode&unix.S_IFMT != unix.S_IFDIR && n.nlink > 1 {
		if first, made := u.names[i]; made {
			if first == "" {
				return nil // it could not be made
			}
			return inTree(name, unix.Linkat(u.root, first, parent, base, 0))
		}
		u.names[i] = name
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return u.subdirectory(parent, name, base, i, &n)
	case unix.S_IFREG:
		return inTree(name, u.file(parent, base, i, &n))
	case unix.S_IFLNK:
		return inTree(name, u.link(parent, base, i, &n))
	case unix.S_IFIFO, unix.S_IFSOCK:
		if err := unix.Mknodat(parent, base, n.mode&unix.S_IFMT|0o600, 0); err != nil {
			return inTree(name, err)
		}
		return inTree(name, u.settleAt(parent, base, &n))
	case unix.S_IFCHR, unix.S_IFBLK:
		u.left.Devices++
		u.names[i] = ""
		return nil
	}
	return inTree(name, errRecord)
}

func (u *unpacker) subdirectory(parent int, name, base string, i uint32, n *node) error {
	if err := unix.Mkdirat(parent, base, 0o700); err != nil {
		return inTree(name, err)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return inTree(name, err)
	}
	return errors.Join(u.directory(fd, name, i, n), unix.Close(fd))
}

func (u *unpacker) file(parent int, base string, i uint32, n *node) error {
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = u.content(fd, i, n.size)
	if err == nil {
		err = u.settle(fd, i, n)
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	return unix.UtimesNanoAt(parent, base, mtime(n), unix.AT_SYMLINK_NOFOLLOW)
}

// content copies a file's bytes; holes that it has, or that are nothing but zeros, stay holes.
func (u *unpacker) content(fd int, i uint32, size uint64) error {
	for off := uint64(0); off < size; {
		n, err := copyRange(u.low, fd, i, off, size-off)
		if err != nil {
			return err
		}
		if n == 0 {
			return errRecord
		}
		off += n
	}
	return unix.Ftruncate(fd, int64(size))
}

func (u *unpacker) link(parent int, base string, i uint32, n *node) error {
	target, err := u.low.readlink(i)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(target, parent, base); err != nil {
		return err
	}
	return u.settleAt(parent, base, n)
}

// settleAt gives what is neither a file nor a directory, and is not to be opened, what it has of its own.
func (u *unpacker) settleAt(parent int, base string, n *node) error {
	uid, gid := u.owner(n)
	if err := u.chowned(unix.Fchownat(parent, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)); err != nil {
		return err
	}
	if n.mode&unix.S_IFMT != unix.S_IFLNK {
		// Nobody else is in this directory: it is what was just made, and no link.
		if err := unix.Fchmodat(parent, base, n.mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(parent, base, mtime(n), unix.AT_SYMLINK_NOFOLLOW)
}

// settle gives an open file or directory its owner, mode and attributes, in this order:
// chown(2) takes set-id bits and capabilities away.
func (u *unpacker) settle(fd int, i uint32, n *node) error {
	uid, gid := u.owner(n)
	if err := u.chowned(unix.Fchown(fd, uid, gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, n.mode&0o7777); err != nil {
		return err
	}
	return u.low.xattrs(i, func(x xattr) bool {
		if shown(x.name) && unix.Fsetxattr(fd, x.name, []byte(x.value), 0) != nil {
			u.left.Attributes++
		}
		return true
	})
}

func (u *unpacker) owner(n *node) (uid, gid int) {
	a, b := u.opt.Owner(n.uid, n.gid)
	return int(a), int(b)
}

// chowned takes the result of a chown. An id that does not exist here (EINVAL), and
// a file system that gives nothing away (EPERM: NFS, vfat), leave the file to this process's user.
func (u *unpacker) chowned(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		u.left.Owners++
		return nil
	}
	return err
}

func mtime(n *node) []unix.Timespec {
	t := unix.Timespec{Sec: n.mtime, Nsec: int64(n.nsec)}
	return []unix.Timespec{t, t}
}
