package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ExtractOptions say how a stream is unpacked.
type ExtractOptions struct {
	// Owners tells what becomes of the owners in the stream.
	Owners Owners
	// UID and GID are for OwnersFixed.
	UID, GID int
	// Inside keeps links in the destination from leading out of the destination
	// itself, and not only out of the root.
	Inside bool
}

// Owners is what becomes of the owners in a stream.
type Owners string

const (
	// OwnersMine leaves files to the process that unpacks.
	OwnersMine Owners = ""
	// OwnersFixed gives all to one.
	OwnersFixed Owners = "fixed"
	// OwnersKept are those in the stream.
	OwnersKept Owners = "kept"
	// OwnersTried are those in the stream where the process may set them.
	OwnersTried Owners = "tried"
)

var (
	errIsDir  = errors.New("cannot overwrite a directory with a file")
	errNotDir = errors.New("cannot overwrite a file with a directory")
)

// Extract unpacks a tar stream into the directory dir, which must be there.
func (r *Root) Extract(stream io.Reader, dir string, opt ExtractOptions) error {
	d, err := r.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer d.Close()
	x := &extractor{opt: opt, base: r, dir: dir}
	if opt.Inside {
		x.base, x.dir = &Root{dir: d, resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}, "."
	}
	tr := tar.NewReader(stream)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := x.entry(h, tr); err != nil {
			return at(h.Name, err)
		}
	}
	if err := x.finish(); err != nil {
		return err
	}
	// Zeros after the end belong to the stream: its writer is not to see EPIPE.
	_, err = io.Copy(io.Discard, stream)
	return err
}

type extractor struct {
	opt  ExtractOptions
	base *Root
	dir  string // from base
	dirs []*tar.Header
}

// locate opens the directory that an entry belongs into, made where it is not
// there, and gives the entry's last name; "" for the destination itself.
func (x *extractor) locate(name string) (*os.File, string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		f, err := x.base.open(x.dir, unix.O_PATH|unix.O_DIRECTORY)
		return f, "", err
	}
	parent, base := path.Split(clean)
	where := path.Join(x.dir, parent)
	f, err := x.base.open(where, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) && parent != "" {
		if err := x.mkdirs(strings.Trim(parent, "/")); err != nil {
			return nil, "", err
		}
		f, err = x.base.open(where, unix.O_PATH|unix.O_DIRECTORY)
	}
	return f, base, err
}

// mkdirs makes directories that the stream does not list.
func (x *extractor) mkdirs(rel string) error {
	dir := x.dir
	for name := range strings.SplitSeq(rel, "/") {
		dir = path.Join(dir, name)
		if err := x.base.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	parent, name, err := x.locate(h.Name)
	if err != nil {
		return err
	}
	defer parent.Close()
	if name == "" {
		return nil // the destination keeps what it is
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return x.directory(parent, name, h)
	case tar.TypeReg:
		return x.file(parent, name, h, content)
	case tar.TypeSymlink:
		err = x.replace(parent, name, func() error { return unix.Symlinkat(h.Linkname, int(parent.Fd()), name) })
	case tar.TypeLink:
		return x.link(parent, name, h)
	case tar.TypeFifo:
		err = x.replace(parent, name, func() error { return unix.Mknodat(int(parent.Fd()), name, unix.S_IFIFO|0o600, 0) })
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		err = x.replace(parent, name, func() error { return unix.Mknodat(int(parent.Fd()), name, kind|0o600, int(dev)) })
		if errors.Is(err, unix.EPERM) {
			return errors.New("a device node cannot be made without root")
		}
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return fmt.Errorf("entry of unknown type %q", h.Typeflag)
	}
	if err != nil {
		return err
	}
	return x.attributes(parent, name, h)
}

// replace makes something in the place of what is there, unless that is a directory.
func (x *extractor) replace(parent *os.File, name string, make func() error) error {
	err := make()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := unix.Unlinkat(int(parent.Fd()), name, 0); err != nil {
		if errors.Is(err, unix.EISDIR) {
			return errIsDir
		}
		return fmt.Errorf("replace: %w", err)
	}
	return make()
}

func (x *extractor) directory(parent *os.File, name string, h *tar.Header) error {
	err := unix.Mkdirat(int(parent.Fd()), name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		// One that is there will do, and so will a link to one: as for the files
		// that are to come, it is followed within bounds.
		d, derr := x.base.open(path.Join(x.dir, path.Clean("/"+h.Name)), unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(derr, unix.ENOTDIR) {
			return errNotDir
		}
		if derr != nil {
			return derr
		}
		defer d.Close()
		var st unix.Stat_t
		if err := unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return err
		}
		err = nil
	}
	if err != nil {
		return err
	}
	// Its attributes come last: it may be one that is not to be written to.
	x.dirs = append(x.dirs, h)
	return nil
}

func (x *extractor) file(parent *os.File, name string, h *tar.Header, content io.Reader) error {
	var f *os.File
	err := x.replace(parent, name, func() (err error) {
		f, err = openAt(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		// A file that is mounted there, such as /etc/hosts: it is written.
		f, err = openAt(parent, name, unix.O_WRONLY|unix.O_TRUNC|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err == nil {
		err = x.setFile(f, h)
	}
	return errors.Join(err, f.Close())
}

// setFile sets the attributes of a file, in the order in which one does not undo
// the other: chown clears set-id bits and capabilities, writing the times.
func (x *extractor) setFile(f *os.File, h *tar.Header) error {
	fd := int(f.Fd())
	owned := false
	if uid, gid, ok := x.owner(h); ok {
		var err error
		if owned, err = x.chowned(unix.Fchown(fd, uid, gid)); err != nil {
			return err
		}
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || !keptXattr(name) {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		// Capabilities are for who may give them, and not every file system has
		// attributes.
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("setxattr %s: %w", name, err)
		}
	}
	mode := uint32(h.Mode) & 0o7777
	if !owned {
		mode &= 0o1777 // set-id bits would be those of somebody else
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return unix.UtimesNanoAt(fd, "", times(h), unix.AT_EMPTY_PATH)
}

// attributes sets what can be set of links and special files, by name.
func (x *extractor) attributes(parent *os.File, name string, h *tar.Header) error {
	fd := int(parent.Fd())
	if uid, gid, ok := x.owner(h); ok {
		if _, err := x.chowned(unix.Fchownat(fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		// fchmodat2(2) with AT_SYMLINK_NOFOLLOW is of Linux 6.6: by a descriptor of
		// the file itself, which cannot be exchanged any more.
		f, err := openAt(parent, name, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), fs.FileMode(h.Mode&0o777)); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(fd, name, times(h), unix.AT_SYMLINK_NOFOLLOW)
}

func (x *extractor) owner(h *tar.Header) (uid, gid int, set bool) {
	switch x.opt.Owners {
	case OwnersFixed:
		return x.opt.UID, x.opt.GID, true
	case OwnersKept, OwnersTried:
		return h.Uid, h.Gid, true
	}
	return 0, 0, false
}

// chowned tells whether a file has got its owner.
func (x *extractor) chowned(err error) (bool, error) {
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)
	switch {
	case err == nil:
		return true, nil
	case denied && x.opt.Owners == OwnersTried:
		return false, nil
	case errors.Is(err, unix.EINVAL):
		return false, errors.New("chown: the container has no such id")
	}
	return false, fmt.Errorf("chown: %w", err)
}

func times(h *tar.Header) []unix.Timespec {
	access := h.AccessTime
	if access.IsZero() {
		access = h.ModTime
	}
	return []unix.Timespec{unix.NsecToTimespec(access.UnixNano()), unix.NsecToTimespec(h.ModTime.UnixNano())}
}

// link makes a hard link to a file of the same stream.
func (x *extractor) link(parent *os.File, name string, h *tar.Header) error {
	from, base, err := x.locate(h.Linkname)
	if err != nil {
		return err
	}
	defer from.Close()
	if base == "" {
		return fmt.Errorf("link to %q", h.Linkname)
	}
	return x.replace(parent, name, func() error {
		return unix.Linkat(int(from.Fd()), base, int(parent.Fd()), name, 0)
	})
}

// finish sets the attributes of directories, those deepest down first.
func (x *extractor) finish() error {
	for _, h := range slices.Backward(x.dirs) {
		if err := x.finishDir(h); err != nil {
			return at(h.Name, err)
		}
	}
	return nil
}

func (x *extractor) finishDir(h *tar.Header) error {
	parent, name, err := x.locate(h.Name)
	if err != nil {
		return err
	}
	defer parent.Close()
	d, err := openAt(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // exchanged meanwhile: whose attributes these are is gone
	}
	if err != nil {
		return err
	}
	return errors.Join(x.setFile(d, h), d.Close())
}
