package fuseunion

import (
	"errors"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the host refuses link(2), a file that gets a second name moves to linkDir in the work directory, and each of its
// names is a reference: a symbolic link to where it is now, which nobody can make in a mount. A file that is in the
// index stays there. Node id and inode number are those of the host's file, which moving it does not change.
//
// How many references there are is written down nowhere but counted when the union is opened: so the count is right whatever was
// killed. The ledger has, of each file that has references, the name that it had before: it moves first and gets its
// reference then, and if that never came, it moves back.

const (
	linkDir   = "links" // in the work directory
	refPrefix = "(urun: link "
	refSuffix = ")"
)

// linked is a file that has references.
type linked struct {
	place string // relative to the work directory
	refs  uint32
}

func refTarget(place string) string { return refPrefix + place + refSuffix }

// refPlace returns where the file is whose reference has this target; false if it is none.
func refPlace(target string) (string, bool) {
	place, ok1 := strings.CutPrefix(target, refPrefix)
	place, ok2 := strings.CutSuffix(place, refSuffix)
	dir, name, _ := strings.Cut(place, "/")
	if _, err := strconv.ParseUint(name, 36, 64); !ok1 || !ok2 || err != nil || dir != linkDir && dir != indexDir {
		return "", false
	}
	return place, true
}

// reserved tells whether a symbolic link with this target would not be taken for one in an upper directory.
func reserved(target string) bool {
	_, ref := refPlace(target)
	return ref || target == WhiteoutTarget
}

// readRef returns where the file is that a name of a directory refers to; false if it is no reference.
func readRef(dirfd int, name string) (place string, ok bool) {
	var buf [64]byte
	n, err := unix.Readlinkat(dirfd, name, buf[:])
	if err != nil {
		return "", false
	}
	return refPlace(string(buf[:n]))
}

// placeID is the number that names a file in the index and in linkDir.
func placeID(place string) uint64 {
	id, err := strconv.ParseUint(path.Base(place), 36, 64)
	if err != nil {
		return 0 // no place: refPlace has looked
	}
	return id
}

// noLinks tells whether link(2) fails for what the host's file system can not do.
func noLinks(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EMLINK)
}

// linkPlace returns where a file is that has references, by its inode number; "" if it has none.
func (u *Union) linkPlace(host uint64) string {
	u.indexMu.RLock()
	defer u.indexMu.RUnlock()
	if l := u.links[host]; l != nil {
		return l.place
	}
	return ""
}

// refs returns how many references a file has.
func (u *Union) refs(host uint64) uint32 {
	u.indexMu.RLock()
	defer u.indexMu.RUnlock()
	if l := u.links[host]; l != nil {
		return l.refs
	}
	return 0
}

// countRef notes one more reference to a file.
func (u *Union) countRef(host uint64, place string) {
	u.indexMu.Lock()
	defer u.indexMu.Unlock()
	if u.links[host] == nil {
		u.links[host] = &linked{place: place}
	}
	u.links[host].refs++
}

// isRef tells whether a name of a node is a reference.
func (u *Union) isRef(n *unode, dirfd int, name string) bool {
	if u.refs(n.host) == 0 {
		return false
	}
	_, ok := readRef(dirfd, name)
	return ok
}

// lostRef notes that a reference is gone.
func (u *Union) lostRef(n *unode) {
	u.indexMu.Lock()
	defer u.indexMu.Unlock()
	if l := u.links[n.host]; l != nil {
		if l.refs--; l.refs == 0 {
			delete(u.links, n.host)
		}
	}
}

// hostLinks returns how many names a node with an upper file has, that file's stat given.
func (u *Union) hostLinks(n *unode, st *unix.Stat_t) uint32 {
	links := uint32(st.Nlink) + u.refs(n.host)
	if n.inWork() {
		links--
	}
	return links
}

// refer gives a node another name without link(2). The caller holds n.mu.
func (u *Union) refer(n *unode, dirfd int, name string, covered bool) error {
	if n.dead {
		// Its name in the work directory stood for none, and is free.
		if n.name == "" {
			return unix.EPERM
		}
		return unix.Renameat(u.workFD, n.name, dirfd, name)
	}
	n.loc.Lock()
	defer n.loc.Unlock()
	switch {
	case !n.inWork():
		if err := u.share(n); err != nil {
			return err
		}
	case u.refs(n.host) == 0:
		if err := u.ledger.setHome(placeID(n.name), homeIndex); err != nil {
			return err
		}
	}
	at, to := dirfd, name
	if covered {
		at, to = u.workFD, u.temp()
	}
	if err := unix.Symlinkat(refTarget(n.name), at, to); err != nil {
		return err
	}
	if covered {
		if err := unix.Renameat(at, to, dirfd, name); err != nil {
			return errors.Join(err, unix.Unlinkat(at, to, 0))
		}
	}
	u.countRef(n.host, n.name)
	return nil
}

// share moves a node's file to linkDir and leaves a reference. The caller holds n.mu and n.loc.
func (u *Union) share(n *unode) error {
	home, err := n.path()
	if err != nil {
		return err
	}
	f, err := u.open(n.parent)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	place, tmp := linkDir+"/"+strconv.FormatUint(u.seq.Add(1), 36), u.temp()
	if err := unix.Symlinkat(refTarget(place), u.workFD, tmp); err != nil {
		return err
	}
	// The order matters to whoever opens the union after a kill: see recount.
	if err := u.ledger.setHome(placeID(place), home); err != nil {
		return errors.Join(err, unix.Unlinkat(u.workFD, tmp, 0))
	}
	if !u.opt.Volatile {
		if err := u.ledger.sync(); err != nil {
			return errors.Join(err, unix.Unlinkat(u.workFD, tmp, 0))
		}
	}
	if err := unix.Renameat(f.fd, n.name, u.workFD, place); err != nil {
		return errors.Join(err, unix.Unlinkat(u.workFD, tmp, 0))
	}
	if err := unix.Renameat(u.workFD, tmp, f.fd, n.name); err != nil {
		return errors.Join(err, unix.Renameat(u.workFD, place, f.fd, n.name), unix.Unlinkat(u.workFD, tmp, 0))
	}
	u.countRef(n.host, place)
	n.shared = true
	u.move(n, nil, place)
	return unix.UtimesNanoAt(f.fd, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// path returns where a node's file is in the upper directory. The caller holds n.loc.
func (n *unode) path() (string, error) {
	names := []string{n.name}
	for d := n.parent; ; {
		if d == nil {
			return "", unix.ESTALE // a name that is not known
		}
		d.loc.RLock()
		name, up := d.name, d.parent
		d.loc.RUnlock()
		if d.id == rootID {
			break
		}
		names = append(names, name)
		d = up
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteString(names[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return b.String(), nil
}

const rootID = 1

// loseShared removes a shared file that has lost its last name, which old was.
func (u *Union) loseShared(old string) error {
	return errors.Join(unix.Unlinkat(u.workFD, old, 0), u.ledger.setHome(placeID(old), ""))
}

// recount finds all references, and puts in order what a killed process left half done.
func (u *Union) recount() error {
	u.links = map[uint64]*linked{}
	fd, err := unix.Openat(u.workFD, linkDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	shared, err := readDirents(fd)
	if err != nil || len(shared) == 0 && !u.ledger.anyHomes() {
		return err
	}
	refs := map[string]uint32{}
	if err := u.walkRefs(u.upperFD, ".", refs); err != nil {
		return err
	}
	for _, e := range shared {
		refs[linkDir+"/"+e.name] += 0
	}
	alive := map[uint64]bool{}
	for place, n := range refs {
		var st unix.Stat_t
		if err := unix.Fstatat(u.workFD, place, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if n > 0 {
			u.links[st.Ino], alive[placeID(place)] = &linked{place, n}, true
		} else if err := u.unshare(place, &st); err != nil {
			return err
		}
	}
	return u.ledger.keepHomes(alive)
}

// walkRefs counts the references below a directory by what they refer to. One to nothing, as only a loss of
// power can leave it, goes.
func (u *Union) walkRefs(dirfd int, dir string, refs map[string]uint32) error {
	fd, err := unix.Openat(dirfd, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	list, err := readDirents(fd)
	if err != nil {
		return err
	}
	for _, e := range list {
		var st unix.Stat_t
		if e.typ == 0 {
			if err := unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			e.typ = st.Mode & unix.S_IFMT
		}
		switch e.typ {
		case unix.S_IFDIR:
			if err := u.walkRefs(fd, e.name, refs); err != nil {
				return err
			}
		case unix.S_IFLNK:
			place, ok := readRef(fd, e.name)
			if !ok {
				continue
			}
			err := unix.Fstatat(u.workFD, place, &st, unix.AT_SYMLINK_NOFOLLOW)
			if errors.Is(err, unix.ENOENT) {
				err = unix.Unlinkat(fd, e.name, 0)
			} else if err == nil {
				refs[place]++
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// unshare is for a file in linkDir without references: it was about to be shared, and moves back to its name, or had just lost
// its last one, and goes.
func (u *Union) unshare(place string, st *unix.Stat_t) error {
	if home := u.ledger.home(placeID(place)); home != "" && home != homeIndex {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
		dirfd, err := unix.Openat2(u.upperFD, path.Dir(home), &how)
		if err == nil {
			defer unix.Close(dirfd)
			var there unix.Stat_t
			if err = unix.Fstatat(dirfd, path.Base(home), &there, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
				return unix.Renameat(u.workFD, place, dirfd, path.Base(home))
			}
		}
		for _, gone := range []error{unix.ENOENT, unix.ENOTDIR, unix.EXDEV, unix.ELOOP} {
			if errors.Is(err, gone) {
				err = nil
			}
		}
		if err != nil {
			return err
		}
	}
	if !u.inXattr(st.Mode & unix.S_IFMT) {
		if err := u.ledger.forget(st.Ino); err != nil {
			return err
		}
	}
	return unix.Unlinkat(u.workFD, place, 0)
}
