package emulation

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIDsFollowPOSIX(t *testing.T) {
	const no = keep
	user := ids{33, 33, 33, 33}
	mixed := ids{1, 2, 3, 2}
	for _, c := range []struct {
		name       string
		from       ids
		privileged bool
		change     func(*ids, bool) error
		want       ids
		err        error
	}{
		{"root turns into a user for good", ids{}, true, func(s *ids, p bool) error { return s.set(33, p) }, user, nil},
		{"a user may set what he is", user, false, func(s *ids, p bool) error { return s.set(33, p) }, user, nil},
		{"a user may not turn into root", user, false, func(s *ids, p bool) error { return s.set(0, p) }, user, unix.EPERM},
		{"setuid takes the saved id", mixed, false, func(s *ids, p bool) error { return s.set(3, p) }, ids{1, 3, 3, 3}, nil},
		{"setuid does not take the effective id", mixed, false, func(s *ids, p bool) error { return s.set(2, p) }, mixed, unix.EPERM},
		{"seteuid is temporary", ids{}, true, func(s *ids, p bool) error { return s.setAll(no, 33, no, p) }, ids{0, 33, 0, 33}, nil},
		{"and can be taken back", ids{0, 33, 0, 33}, false, func(s *ids, p bool) error { return s.setAll(no, 0, no, p) }, ids{}, nil},
		{"setresuid changes all or nothing", mixed, false, func(s *ids, p bool) error { return s.setAll(2, 3, 9, p) }, mixed, unix.EPERM},
		{"setreuid swaps", ids{1, 2, 2, 2}, false, func(s *ids, p bool) error { return s.setPair(2, 1, p) }, ids{2, 1, 1, 1}, nil},
		{"setreuid of the effective id alone saves it", ids{1, 1, 1, 1}, true, func(s *ids, p bool) error { return s.setPair(no, 5, p) }, ids{1, 5, 5, 5}, nil},
		{"to the real id it saves nothing", mixed, false, func(s *ids, p bool) error { return s.setPair(no, 1, p) }, ids{1, 1, 3, 1}, nil},
		{"setreuid does not make the saved id real", mixed, false, func(s *ids, p bool) error { return s.setPair(3, no, p) }, mixed, unix.EPERM},
		{"setfsuid takes any of one's ids", mixed, false, func(s *ids, p bool) error { s.setFS(3, p); return nil }, ids{1, 2, 3, 3}, nil},
		{"and ignores others", mixed, false, func(s *ids, p bool) error { s.setFS(9, p); return nil }, mixed, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.from
			if err := c.change(&got, c.privileged); !errors.Is(err, c.err) {
				t.Errorf("error is %v, want %v", err, c.err)
			}
			if got != c.want {
				t.Errorf("ids are %v, want %v", got, c.want)
			}
		})
	}
}

func TestKeptCapabilitiesOutliveTheIDs(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		who := Identity{keepCaps: keeps}
		before := who.user
		if err := who.user.set(33, true); err != nil {
			t.Fatal(err)
		}
		who.turned(before)
		if who.privileged() != keeps {
			t.Errorf("with PR_SET_KEEPCAPS %v a process that has turned is privileged: %v", keeps, who.privileged())
		}
	}
}

func TestTokensTravelInALimit(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_LOCKS, &before); err != nil {
		t.Fatal(err)
	}
	if before.Max != unix.RLIM_INFINITY {
		t.Skip("RLIMIT_LOCKS has a hard limit here")
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_LOCKS, &before); err != nil {
			t.Error(err)
		}
	}()
	var table identities
	who := Identity{user: ids{1, 2, 3, 65534}, group: ids{5, 6, 7, 70000}, groups: []uint32{8, 9}}
	if err := table.become(os.Getpid(), &who); err != nil {
		t.Fatal(err)
	}
	got, err := table.of(os.Getpid())
	if err != nil || !got.equal(&who) {
		t.Errorf("is %+v, %v, want %+v", got, err, who)
	}
	tok, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if uid, gid, ok := tok.Files(); uid != 65534 || gid != 70000 || !ok {
		t.Errorf("files are %d:%d, %v", uid, gid, ok)
	}
	if again, err := table.token(&who); again != tok || err != nil {
		t.Errorf("the same identity has the tokens %x and %x, %v", tok, again, err)
	}
	// Of another supervisor, or set by somebody else: root's.
	if got, err := new(identities).of(os.Getpid()); err != nil || !got.equal(&Identity{}) {
		t.Errorf("a token that nobody gave is %+v, %v", got, err)
	}
	if err := table.become(os.Getpid(), &Identity{}); err != nil {
		t.Fatal(err)
	}
	if tok, err := Of(os.Getpid()); tok != noToken || err != nil {
		t.Errorf("root has the token %x, %v", tok, err)
	}
	if _, err := table.token(&Identity{user: ids{fs: 1 << idBits}}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an id that fits no token: %v, want EINVAL", err)
	}
}
