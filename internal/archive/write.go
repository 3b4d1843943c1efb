package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WriteOptions say what a stream holds.
type WriteOptions struct {
	// Name is what the path is called in the stream; "." for the content of a
	// directory without itself.
	Name string
	// Follow follows a symbolic link at the path; without, the link is what is
	// written. Links below are never followed.
	Follow bool
	// OneMount leaves out what is mounted below the path: of that there is an
	// empty directory or file.
	OneMount bool
	// Flat leaves out what is in directories.
	Flat bool
	// Owner, if set, maps the owners of files to those in the stream.
	Owner func(uid, gid int) (int, int) `json:"-"`
}

// Write writes what is at a path as a tar stream.
func (r *Root) Write(w io.Writer, name string, opt WriteOptions) error {
	aw := &writer{root: r, tar: tar.NewWriter(w), opt: opt, links: map[inode]string{}}
	if err := aw.start(name); err != nil {
		return err
	}
	return aw.tar.Close()
}

type inode struct{ dev, ino uint64 }

type writer struct {
	root  *Root
	tar   *tar.Writer
	opt   WriteOptions
	links map[inode]string // multiply linked files by where they came first
	mount uint64
	buf   []byte
}

func (w *writer) start(name string) error {
	flags := unix.O_PATH
	if !w.opt.Follow {
		flags |= unix.O_NOFOLLOW
	}
	top, err := w.root.open(name, flags)
	if err != nil {
		return err
	}
	defer top.Close()
	if w.opt.OneMount {
		if w.mount, err = mountID(int(top.Fd()), ""); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(top.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if err := w.root.truth(top, &st); err != nil {
		return at(name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		dir, err := openAt(top, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return at(name, err)
		}
		defer dir.Close()
		return w.directory(dir, &st, w.opt.Name)
	}
	// The entry is opened again by its directory and name: a link cannot be read
	// otherwise, and a file not without /proc.
	if w.opt.Follow {
		return w.followed(name, &st)
	}
	parent, base, err := w.root.parent(name)
	if err != nil {
		return err
	}
	defer parent.Close()
	return w.entry(parent, base, w.opt.Name)
}

// followed writes a file that a link led to.
func (w *writer) followed(name string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return w.special(st, w.opt.Name, "")
	}
	f, err := w.root.open(name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.file(f, w.opt.Name)
}

// entry writes the name in an open directory, called as in the stream.
func (w *writer) entry(parent *os.File, name, called string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: called, Err: err}
	}
	other, err := w.otherMount(parent, name)
	if err != nil {
		return err
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case other:
		return w.placeholder(&st, called)
	case kind == unix.S_IFDIR:
		dir, err := openAt(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return at(called, err)
		}
		defer dir.Close()
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			return &fs.PathError{Op: "stat", Path: called, Err: err}
		}
		if err := w.root.truth(dir, &st); err != nil {
			return at(called, err)
		}
		return w.directory(dir, &st, called)
	case kind == unix.S_IFREG:
		// Should it have become a pipe: O_NONBLOCK does not wait for its writer.
		f, err := openAt(parent, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return at(called, err)
		}
		defer f.Close()
		return w.file(f, called)
	case kind == unix.S_IFLNK:
		target, err := readlink(int(parent.Fd()), name)
		if err != nil {
			return &fs.PathError{Op: "readlink", Path: called, Err: err}
		}
		if err := w.root.truthAt(parent, name, &st); err != nil {
			return at(called, err)
		}
		return w.special(&st, called, target)
	case kind == unix.S_IFSOCK:
		return nil // tar knows none, and a copy of one would be of no use
	}
	if err := w.root.truthAt(parent, name, &st); err != nil {
		return at(called, err)
	}
	return w.special(&st, called, "")
}

// otherMount tells whether the name is a mount point that is to be left out.
func (w *writer) otherMount(parent *os.File, name string) (bool, error) {
	if !w.opt.OneMount {
		return false, nil
	}
	id, err := mountID(int(parent.Fd()), name)
	return id != w.mount, err
}

// mountID tells which mount a name in an open directory is on (Linux 5.8).
func mountID(dir int, name string) (uint64, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := unix.Statx(dir, name, flags, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &fs.PathError{Op: "statx", Path: name, Err: err}
	}
	return st.Mnt_id, nil
}

// placeholder is what there is of a mount point: what was mounted on cannot be seen.
func (w *writer) placeholder(st *unix.Stat_t, called string) error {
	h := &tar.Header{Name: called, Mode: 0o755, Typeflag: tar.TypeDir, Format: tar.FormatPAX}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		h.Name += "/"
	} else {
		h.Typeflag, h.Mode = tar.TypeReg, 0o644
	}
	return w.tar.WriteHeader(h)
}

func (w *writer) directory(dir *os.File, st *unix.Stat_t, called string) error {
	h := w.header(st, strings.TrimRight(called, "/")+"/")
	h.Typeflag = tar.TypeDir
	if err := addXattrs(h, int(dir.Fd())); err != nil {
		return at(called, err)
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	if w.opt.Flat {
		return nil
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return at(called, err)
	}
	slices.Sort(names)
	for _, name := range names {
		sub := name
		if called != "." {
			sub = strings.TrimRight(called, "/") + "/" + name
		}
		err := w.entry(dir, name, sub)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went while the directory was read
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) header(st *unix.Stat_t, called string) *tar.Header {
	h := &tar.Header{
		Name: called, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	if w.opt.Owner != nil {
		h.Uid, h.Gid = w.opt.Owner(h.Uid, h.Gid)
	}
	return h
}

// special writes what has no content: links, devices, pipes.
func (w *writer) special(st *unix.Stat_t, called, target string) error {
	h := w.header(st, called)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return fmt.Errorf("%s: a file of this type cannot be copied", called)
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	}
	return w.tar.WriteHeader(h)
}

// file writes a regular file.
func (w *writer) file(f *os.File, called string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "stat", Path: called, Err: err}
	}
	if err := w.root.truth(f, &st); err != nil {
		return at(called, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return w.special(&st, called, "") // it has been exchanged
	}
	h := w.header(&st, called)
	h.Typeflag = tar.TypeReg
	if st.Nlink > 1 {
		key := inode{uint64(st.Dev), st.Ino}
		if first, ok := w.links[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return w.tar.WriteHeader(h)
		}
		w.links[key] = called
	}
	h.Size = st.Size
	if err := addXattrs(h, int(f.Fd())); err != nil {
		return at(called, err)
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	return at(called, w.content(f, h.Size))
}

// content copies as many bytes as the header has promised: a file that shrinks
// meanwhile is filled with zeros, as GNU tar does.
func (w *writer) content(f *os.File, size int64) error {
	if w.buf == nil {
		w.buf = make([]byte, 256<<10)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w.tar}, io.LimitReader(f, size), w.buf)
	if err != nil || n == size {
		return err
	}
	_, err = io.CopyN(w.tar, zeros{}, size-n)
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// xattrPrefix is how a PAX record names an extended attribute.
const xattrPrefix = "SCHILY.xattr."

// keptXattr tells which attributes belong to a file: those of its user, and its
// capabilities. The others are the kernel's or a file system's own business.
func keptXattr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

func addXattrs(h *tar.Header, fd int) error {
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listxattr: %w", err)
	}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if !keptXattr(name) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return fmt.Errorf("getxattr %s: %w", name, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+name] = string(value[:n])
	}
	return nil
}
