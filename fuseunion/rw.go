package fuseunion

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// UnionOptions say how a Union behaves.
type UnionOptions struct {
	// Volatile makes fsync(2) do nothing: for a writable layer that nobody needs
	// after a loss of power.
	Volatile bool
	// NoXattrs keeps metadata beside the files even where the host's file system has
	// user.* attributes.
	NoXattrs bool
	// NoDeviceWhiteouts marks removed entries with symbolic links even where the
	// host's file system lets the process make character devices 0/0.
	NoDeviceWhiteouts bool
	// NoLinks gives a file its further names by references even where the host's file
	// system has hard links.
	NoLinks bool
	// LazySize is from which size on, in bytes, a file is copied up without its content,
	// which then comes as it is written to; by default 256 KiB, never if negative.
	LazySize int64
	// MaxOpenFiles bounds the descriptors that are kept open between requests; by
	// default half of RLIMIT_NOFILE.
	MaxOpenFiles int
	// Emulate has the union remember owners that are not mapped; nil: it shows no trace
	// of them, and takes none.
	Emulate *Emulation
}

// Union is a file system of a Lower, which never changes, and a directory of the
// host that takes all changes: the upper one. Its methods may be called from many
// goroutines at once.
type Union struct {
	low       lowerFS
	opt       UnionOptions
	upper     *os.File // O_PATH
	work      *os.File // O_PATH
	lock      *os.File
	upperFD   int
	workFD    int
	hasXattrs bool
	linkWhite bool // whiteouts are symbolic links
	noTmpfile atomic.Bool
	uid, gid  uint32 // of the files that this process makes
	umask     uint32
	lazySize  int64
	boot      []byte
	firstIno  uint64
	ledger    *ledger
	ids       idMap
	table     nodeTable
	fds       fdCache
	root      *unode
	indexMu   sync.RWMutex
	index     map[uint32]string  // multiply linked lower files that were copied up: their names in indexDir
	links     map[uint64]*linked // files that have references, by the host's inode number; the same lock
	seq       atomic.Uint64      // of names in the work directory
	slow      func() func()      // set by the server; see slowly
	ahead     *ahead             // nil where nobody lists directories
}

const (
	indexDir = "index" // in the work directory
	tempDir  = "tmp"
	lockName = "lock"
)

// ErrBusy is returned for a writable layer that another process serves.
var ErrBusy = errors.New("writable layer is in use")

// OpenUnion opens a union of low with the directories upper and
// work of one file system, which belong to the caller. The upper directory is laid
// out as overlayfs would: see docs for what it can not express. Work must be given
// again whenever upper is. What a killed process left half done is cleaned up.
func OpenUnion(low Lower, upper, work string, opt UnionOptions) (*Union, error) {
	l := low.lower()
	u := &Union{low: l, opt: opt, firstIno: l.firstIno(), upperFD: -1, workFD: -1}
	u.slow = func() func() { return func() {} }
	if err := u.setUp(upper, work); err != nil {
		return nil, errors.Join(fmt.Errorf("open union of %s: %w", upper, err), u.Close())
	}
	return u, nil
}

func (u *Union) setUp(upper, work string) (err error) {
	if u.upper, err = openPath(upper); err != nil {
		return err
	}
	if u.work, err = openPath(work); err != nil {
		return err
	}
	if u.upperFD, err = rawFD(u.upper); err != nil {
		return err
	}
	if u.workFD, err = rawFD(u.work); err != nil {
		return err
	}
	fd, err := unix.Openat(u.workFD, lockName, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	u.lock = os.NewFile(uintptr(fd), lockName)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrBusy
		}
		return fmt.Errorf("lock: %w", err)
	}
	if u.umask, err = umask(); err != nil {
		return err
	}
	if u.boot, err = bootID(); err != nil {
		return err
	}
	u.lazySize = cmp.Or(u.opt.LazySize, defaultLazySize)
	if err := u.cleanWork(); err != nil {
		return err
	}
	if err := u.skipNames(); err != nil {
		return err
	}
	if err := u.probe(); err != nil {
		return err
	}
	if u.ledger, err = openLedger(u.workFD); err != nil {
		return err
	}
	if err := u.recount(); err != nil {
		return fmt.Errorf("look for references: %w", err)
	}
	u.noTmpfile.Store(u.opt.NoLinks)
	u.fds.max = u.opt.MaxOpenFiles
	if u.fds.max <= 0 {
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			return err
		}
		u.fds.max = int(min(lim.Cur/2, 1<<16))
	}
	if err := u.openRoot(); err != nil {
		return err
	}
	return u.loadIndex()
}

func openPath(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// umask returns the process's own: asking the kernel for it would change it.
func umask() (uint32, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return uint32(n), err
		}
	}
	return 0, errors.New("no umask in /proc/self/status")
}

// Close ends the union. A server must have ended before.
func (u *Union) Close() error {
	var errs []error
	if u.root != nil {
		u.table.closeAll(u)
	}
	if u.ledger != nil {
		errs = append(errs, u.ledger.close())
	}
	for _, f := range []*os.File{u.lock, u.upper, u.work} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// cleanWork removes what a killed process left in the work directory: half-made
// copies, and files that were removed while they were open.
func (u *Union) cleanWork() error {
	if err := removeAll(u.workFD, tempDir); err != nil {
		return fmt.Errorf("clean work directory: %w", err)
	}
	for _, dir := range []string{tempDir, indexDir, linkDir, lazyDir} {
		if err := unix.Mkdirat(u.workFD, dir, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make work directory: %w", err)
		}
	}
	return nil
}

// removeAll removes a name in a directory with all below it, without following
// links; none is no error.
func removeAll(dirfd int, name string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR); err == nil || errors.Is(err, unix.ENOTDIR) {
		return err
	}
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ents, err := readDirents(fd)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := removeAll(fd, e.name); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
}

// temp returns a new name in the temporary directory, relative to the work
// directory.
func (u *Union) temp() string { return tempDir + "/" + strconv.FormatUint(u.seq.Add(1), 36) }

// probe finds out what the host's file system can do, and who this process is there.
func (u *Union) probe() error {
	name := u.temp()
	fd, err := unix.Openat(u.workFD, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("write to work directory: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	u.uid, u.gid = st.Uid, st.Gid
	u.hasXattrs = !u.opt.NoXattrs && unix.Fsetxattr(fd, metaXattr, []byte{metaVersion, 0}, 0) == nil
	if err := unix.Unlinkat(u.workFD, name, 0); err != nil {
		return err
	}
	name = u.temp()
	u.linkWhite = u.opt.NoDeviceWhiteouts || unix.Mknodat(u.workFD, name, unix.S_IFCHR, 0) != nil
	if u.linkWhite {
		return nil
	}
	return unix.Unlinkat(u.workFD, name, 0)
}

func (u *Union) openRoot() error {
	var st unix.Stat_t
	if err := unix.Fstat(u.upperFD, &st); err != nil {
		return err
	}
	m, err := u.readMeta(u.upperFD, "", &st)
	if err != nil {
		return err
	}
	n := &unode{id: rootID, ino: u.low.ino(0), low: 1, typ: unix.S_IFDIR, upper: true, host: st.Ino, htyp: unix.S_IFDIR, meta: m}
	n.lookups = 1 // for ever
	n.file = &openFile{fd: u.upperFD, n: n, pinned: true, users: 1}
	u.root = n
	u.table.insert(n)
	if m.has&metaOwner != 0 {
		return nil
	}
	// A new layer: its root looks like the lower one.
	return u.likeLower(n)
}

// likeLower gives the upper directory the owner, mode, times and attributes of the
// lower root.
func (u *Union) likeLower(n *unode) error {
	var low node
	if err := u.low.node(0, &low); err != nil {
		return err
	}
	m, err := u.lowerMeta(0, &low)
	if err != nil {
		return err
	}
	m.has &^= metaOrigin
	m.origin = ""
	m.has |= metaOwner
	if err := u.writeMeta(u.upperFD, "", unix.S_IFDIR, n.host, &m); err != nil {
		return err
	}
	n.meta = m
	ts := unix.Timespec{Sec: low.mtime, Nsec: int64(low.nsec)}
	return unix.UtimesNanoAt(u.upperFD, ".", []unix.Timespec{ts, ts}, 0)
}

// loadIndex reads which multiply linked lower files were copied up.
func (u *Union) loadIndex() error {
	u.index = map[uint32]string{}
	fd, err := unix.Openat(u.workFD, indexDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ents, err := readDirents(fd)
	if err != nil {
		return err
	}
	for _, e := range ents {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		m, err := u.readMeta(fd, e.name, &st)
		if err != nil {
			return err
		}
		i, err := lowerNode(u.low, m.origin)
		if m.has&metaOrigin != 0 && err == nil {
			u.index[i] = e.name
		}
	}
	return nil
}

// skipNames makes new names in the work directory differ from those that are there.
func (u *Union) skipNames() error {
	for _, dir := range []string{indexDir, linkDir, lazyDir} {
		fd, err := unix.Openat(u.workFD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ents, err := readDirents(fd)
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
		for _, e := range ents {
			if n, err := strconv.ParseUint(e.name, 36, 64); err == nil && n > u.seq.Load() {
				u.seq.Store(n)
			}
		}
	}
	return nil
}
