package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a directory tree. Its methods take paths from its root, slashes first
// or not.
type Root struct {
	dir *os.File
	// resolve are the RESOLVE_* flags for paths.
	resolve uint64
	owner   func(path string, open bool, st *unix.Stat_t) error
}

// NewRoot is the tree below an open directory, which it closes in the end.
func NewRoot(dir *os.File) *Root { return &Root{dir: dir, resolve: unix.RESOLVE_IN_ROOT} }

// Host is the whole file system of this process.
func Host() (*Root, error) {
	dir, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	// Magic links (/proc/self/fd) included: the host's paths are the user's own.
	return &Root{dir: dir}, nil
}

// Remembered sets what knows owners that stat(2) does not show: it is given a path and what
// stat says of that, without following a link at its end, or, if the path is that of an open file below /proc, of the file.
func (r *Root) Remembered(owner func(path string, open bool, st *unix.Stat_t) error) { r.owner = owner }

// truth puts the owner into what stat(2) said of an open file.
func (r *Root) truth(f *os.File, st *unix.Stat_t) error {
	if r.owner == nil {
		return nil
	}
	return r.owner(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), true, st)
}

// truthAt is truth of a name in an open directory.
func (r *Root) truthAt(dir *os.File, name string, st *unix.Stat_t) error {
	if r.owner == nil {
		return nil
	}
	return r.owner(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), false, st)
}

// Path is where this process finds the root directory as long as that is open.
func (r *Root) Path() string { return fmt.Sprintf("/proc/self/fd/%d", r.dir.Fd()) }

// Close closes the root directory.
func (r *Root) Close() error { return r.dir.Close() }

// open opens a path for O_PATH or whatever the flags say.
func (r *Root) open(name string, flags int) (*os.File, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: r.resolve}
	rel := strings.TrimLeft(name, "/")
	if rel == "" {
		rel = "."
	}
	for {
		fd, err := unix.Openat2(int(r.dir.Fd()), rel, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			// EAGAIN: a rename raced with the resolution of a "..".
		default:
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// Info is what is known of a path.
type Info struct {
	// Path is the path that was asked for, and Exists tells whether there is
	// something; if not, the others are zero.
	Path   string
	Exists bool
	// Mode is st_mode, with the type.
	Mode uint32
	// Link is the target of a symbolic link.
	Link string `json:",omitempty"`
	Size int64
	// UID and GID are as this process's user namespace has them.
	UID, GID int
}

// IsDir tells whether it is a directory.
func (i Info) IsDir() bool { return i.Exists && i.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsLink tells whether it is a symbolic link.
func (i Info) IsLink() bool { return i.Exists && i.Mode&unix.S_IFMT == unix.S_IFLNK }

// Stat looks at a path. A symbolic link at its end is followed if follow is set.
// That there is nothing is no error, unless it is the directory that is missing.
func (r *Root) Stat(name string, follow bool) (Info, error) {
	info := Info{Path: name}
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	f, err := r.open(name, flags)
	if errors.Is(err, fs.ErrNotExist) {
		return info, nil
	}
	if err != nil {
		return info, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return info, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if err := r.truth(f, &st); err != nil {
		return info, at(name, err)
	}
	info.Exists, info.Mode, info.Size, info.UID, info.GID = true, st.Mode, st.Size, int(st.Uid), int(st.Gid)
	if info.IsLink() {
		if info.Link, err = readlink(int(f.Fd()), ""); err != nil {
			return info, &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
	}
	return info, nil
}

// Mkdir makes one directory, mode 0755.
func (r *Root) Mkdir(name string) error {
	parent, base, err := r.parent(name)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), base, 0o755); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// parent opens the directory that a path is in.
func (r *Root) parent(name string) (*os.File, string, error) {
	clean := strings.TrimRight(name, "/")
	dir, base := path.Split(clean)
	if base == "" || base == "." || base == ".." {
		return nil, "", &fs.PathError{Op: "open", Path: name, Err: unix.EINVAL}
	}
	f, err := r.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	return f, base, err
}

// readlink reads the link name in the directory fd, or the link fd itself.
func readlink(fd int, name string) (string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(fd, name, buf)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

// openAt opens a name in an open directory, never following a link.
func openAt(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// at puts the path into an error that knows only the last name.
func at(name string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return &fs.PathError{Op: p.Op, Path: name, Err: p.Err}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
