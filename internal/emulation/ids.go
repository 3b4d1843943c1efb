package emulation

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// keep stands for an id that is not to be changed: -1 in setreuid(2) and chown(2).
const keep = ^uint32(0)

// ids are the four user or group ids of a process (credentials(7)).
type ids struct{ real, effective, saved, fs uint32 }

// Identity is who a process is. The zero value is root.
type Identity struct {
	user, group ids
	groups      []uint32
	// keepCaps is PR_SET_KEEPCAPS: when the process turns from root into another user
	// it stays capable, until it executes something.
	keepCaps, capable bool
}

func (i *Identity) privileged() bool { return i.user.effective == 0 || i.capable }

// turned does to the capabilities what a change of ids does (capabilities(7)).
func (i *Identity) turned(before ids) {
	root := func(s ids) bool { return s.real == 0 || s.effective == 0 || s.saved == 0 }
	if root(before) && !root(i.user) {
		i.capable = i.keepCaps
	}
}

func (i *Identity) equal(o *Identity) bool {
	return i.user == o.user && i.group == o.group && i.keepCaps == o.keepCaps && i.capable == o.capable && slices.Equal(i.groups, o.groups)
}

// inGroup tells whether files of a group may be treated as the process's own group's.
func (i *Identity) inGroup(gid uint32) bool {
	return gid == i.group.fs || slices.Contains(i.groups, gid)
}

// set is setuid(2).
func (s *ids) set(id uint32, privileged bool) error {
	switch {
	case privileged:
		*s = ids{id, id, id, id}
	case id == s.real || id == s.saved:
		s.effective, s.fs = id, id
	default:
		return unix.EPERM
	}
	return nil
}

// setPair is setreuid(2).
func (s *ids) setPair(r, e uint32, privileged bool) error {
	if !privileged && (r != keep && r != s.real && r != s.effective || e != keep && !s.any(e)) {
		return unix.EPERM
	}
	old := s.real
	if r != keep {
		s.real = r
	}
	if e != keep {
		s.effective = e
	}
	if r != keep || e != keep && e != old {
		s.saved = s.effective
	}
	s.fs = s.effective
	return nil
}

// setAll is setresuid(2).
func (s *ids) setAll(r, e, v uint32, privileged bool) error {
	for _, id := range []uint32{r, e, v} {
		if !privileged && id != keep && !s.any(id) {
			return unix.EPERM
		}
	}
	for _, set := range []struct {
		to *uint32
		id uint32
	}{{&s.real, r}, {&s.effective, e}, {&s.saved, v}} {
		if set.id != keep {
			*set.to = set.id
		}
	}
	s.fs = s.effective
	return nil
}

// setFS is setfsuid(2), which returns the id before and never fails.
func (s *ids) setFS(id uint32, privileged bool) (before uint32) {
	before = s.fs
	if privileged || s.any(id) || id == s.fs {
		s.fs = id
	}
	return before
}

func (s *ids) any(id uint32) bool { return id == s.real || id == s.effective || id == s.saved }

// Token is what of an Identity travels with a process: the number of the identity
// and the two ids that belong to the files it makes, all in one resource limit.
type Token uint64

// noToken is root's: no limit.
const noToken Token = unix.RLIM_INFINITY

const (
	idBits = 24
	idMask = 1<<idBits - 1
)

// Files are the ids of files that a process with this token makes; false for root.
func (t Token) Files() (uid, gid uint32, ok bool) {
	return uint32(t>>idBits) & idMask, uint32(t) & idMask, t != noToken && t>>(2*idBits) != 0
}

// Of returns a process's token. The caller needs the process's uid and gid, or
// CAP_SYS_RESOURCE in its user namespace. pid may be that of any thread.
func Of(pid int) (Token, error) {
	var lim unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_LOCKS, nil, &lim); err != nil {
		return noToken, err
	}
	return Token(lim.Cur), nil
}

// identities are those that a supervisor has seen. They are few: one for each user
// that something in the container has become.
type identities struct {
	mu  sync.Mutex
	all []*Identity // number n at n-1
}

// of returns who a process is. A token that nobody gave is root's.
func (t *identities) of(pid int) (Identity, error) {
	tok, err := Of(pid)
	if err != nil {
		return Identity{}, err
	}
	n := uint64(tok >> (2 * idBits))
	t.mu.Lock()
	defer t.mu.Unlock()
	if tok == noToken || n == 0 || n > uint64(len(t.all)) {
		return Identity{}, nil
	}
	return *t.all[n-1], nil
}

// any tells whether any process may be other than root.
func (t *identities) any() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all) > 0
}

// token returns the token of an identity.
func (t *identities) token(id *Identity) (Token, error) {
	if id.equal(&Identity{}) {
		return noToken, nil
	}
	if id.user.fs > idMask || id.group.fs > idMask {
		return 0, unix.EINVAL
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := slices.IndexFunc(t.all, func(o *Identity) bool { return o.equal(id) })
	if n < 0 {
		if len(t.all) >= 1<<16-2 {
			return 0, unix.EAGAIN
		}
		c := *id
		c.groups = slices.Clone(id.groups)
		n, t.all = len(t.all), append(t.all, &c)
	}
	return Token(n+1)<<(2*idBits) | Token(id.user.fs)<<idBits | Token(id.group.fs), nil
}

// become makes a process an identity.
func (t *identities) become(pid int, id *Identity) error {
	tok, err := t.token(id)
	if err != nil {
		return err
	}
	var lim unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_LOCKS, nil, &lim); err != nil {
		return err
	}
	lim.Cur = uint64(tok)
	return unix.Prlimit(pid, unix.RLIMIT_LOCKS, &lim, nil)
}
