package emulation

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

func handlers() map[string]handler {
	return map[string]handler{
		"getuid":    get(func(i *Identity) uint32 { return i.user.real }),
		"geteuid":   get(func(i *Identity) uint32 { return i.user.effective }),
		"getgid":    get(func(i *Identity) uint32 { return i.group.real }),
		"getegid":   get(func(i *Identity) uint32 { return i.group.effective }),
		"getresuid": getAll(func(i *Identity) *ids { return &i.user }),
		"getresgid": getAll(func(i *Identity) *ids { return &i.group }),
		"getgroups": (*worker).getgroups,

		"setuid":    change(func(i *Identity, a [3]uint32) error { return i.user.set(a[0], i.privileged()) }),
		"setgid":    change(func(i *Identity, a [3]uint32) error { return i.group.set(a[0], i.privileged()) }),
		"setreuid":  change(func(i *Identity, a [3]uint32) error { return i.user.setPair(a[0], a[1], i.privileged()) }),
		"setregid":  change(func(i *Identity, a [3]uint32) error { return i.group.setPair(a[0], a[1], i.privileged()) }),
		"setresuid": change(func(i *Identity, a [3]uint32) error { return i.user.setAll(a[0], a[1], a[2], i.privileged()) }),
		"setresgid": change(func(i *Identity, a [3]uint32) error { return i.group.setAll(a[0], a[1], a[2], i.privileged()) }),
		"setfsuid":  setFS(func(i *Identity) *ids { return &i.user }),
		"setfsgid":  setFS(func(i *Identity) *ids { return &i.group }),
		"setgroups": (*worker).setgroups,

		"prlimit64":  (*worker).prlimit,
		"getrlimit":  func(w *worker, n *notification) answer { return w.noLimit(n, n.args[1]) },
		"setrlimit":  func(*worker, *notification) answer { return answer{} },
		"prctl":      (*worker).prctl,
		"execve":     (*worker).execve,
		"execveat":   (*worker).execveat,
		"getsockopt": (*worker).peer,

		"chown":    chown(0, 1, 0),
		"lchown":   chown(0, 1, unix.AT_SYMLINK_NOFOLLOW),
		"fchown":   (*worker).fchown,
		"fchownat": (*worker).fchownat,
		"mknod":    (*worker).mknod,
		"mknodat":  (*worker).mknodat,

		"stat":       (*worker).stat,
		"lstat":      (*worker).lstat,
		"fstat":      (*worker).fstat,
		"newfstatat": (*worker).fstatat,
		"statx":      (*worker).statx,
	}
}

// get is a call that returns one id.
func get(id func(*Identity) uint32) handler {
	return func(w *worker, n *notification) answer {
		who, err := w.table.of(int(n.pid))
		if err != nil {
			return pass()
		}
		return value(id(&who))
	}
}

// getAll is getresuid(2).
func getAll(of func(*Identity) *ids) handler {
	return func(w *worker, n *notification) answer {
		who, err := w.table.of(int(n.pid))
		if err != nil {
			return pass()
		}
		s := of(&who)
		for i, id := range []uint32{s.real, s.effective, s.saved} {
			if err := w.write(n, n.args[i], binary.NativeEndian.AppendUint32(nil, id)); err != nil {
				return result(err)
			}
		}
		return answer{}
	}
}

// change is a call that sets ids.
func change(apply func(*Identity, [3]uint32) error) handler {
	return func(w *worker, n *notification) answer {
		who, err := w.table.of(int(n.pid))
		before := who.user
		if err == nil {
			err = apply(&who, [3]uint32{uint32(n.args[0]), uint32(n.args[1]), uint32(n.args[2])})
		}
		if err == nil {
			who.turned(before)
			err = w.table.become(int(n.pid), &who)
		}
		return result(err)
	}
}

// prctl is PR_SET_KEEPCAPS, which the kernel is to know of as well.
func (w *worker) prctl(n *notification) answer {
	who, err := w.table.of(int(n.pid))
	if err != nil || n.args[1] > 1 {
		return pass()
	}
	who.keepCaps = n.args[1] == 1
	if err := w.table.become(int(n.pid), &who); err != nil {
		return result(err)
	}
	return pass()
}

// prlimit answers for RLIMIT_LOCKS as if it were never set: programs such as sudo put
// back all limits as they found them, and so would become who they were.
func (w *worker) prlimit(n *notification) answer { return w.noLimit(n, n.args[3]) }

func (w *worker) noLimit(n *notification, to uint64) answer {
	if to == 0 {
		return answer{}
	}
	return result(w.write(n, to, bytesOf(&unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})))
}

func setFS(of func(*Identity) *ids) handler {
	return func(w *worker, n *notification) answer {
		who, err := w.table.of(int(n.pid))
		if err != nil {
			return result(err)
		}
		before := of(&who).setFS(uint32(n.args[0]), who.privileged())
		if w.table.become(int(n.pid), &who) != nil {
			return value(before) // an id that can not be had: setfsuid(2) does not fail
		}
		return value(before)
	}
}

// maxGroups is NGROUPS_MAX.
const maxGroups = 65536

func (w *worker) setgroups(n *notification) answer {
	count := uint32(n.args[0])
	who, err := w.table.of(int(n.pid))
	switch {
	case err != nil:
		return result(err)
	case !who.privileged():
		return result(unix.EPERM)
	case count > maxGroups:
		return result(unix.EINVAL)
	}
	raw := make([]byte, 4*count)
	if err := n.read(n.args[1], raw); err != nil {
		return result(err)
	}
	who.groups = nil
	for ; len(raw) > 0; raw = raw[4:] {
		who.groups = append(who.groups, binary.NativeEndian.Uint32(raw))
	}
	return result(w.table.become(int(n.pid), &who))
}

func (w *worker) getgroups(n *notification) answer {
	who, err := w.table.of(int(n.pid))
	size := int32(n.args[0])
	switch {
	case err != nil:
		return pass()
	case size == 0:
		return value(uint32(len(who.groups)))
	case size < 0 || int(size) < len(who.groups):
		return result(unix.EINVAL)
	}
	var raw []byte
	for _, gid := range who.groups {
		raw = binary.NativeEndian.AppendUint32(raw, gid)
	}
	if err := w.write(n, n.args[1], raw); err != nil {
		return result(err)
	}
	return value(uint32(len(who.groups)))
}
