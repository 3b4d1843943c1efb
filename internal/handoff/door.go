package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A door is a socket in the file system on which a long-lived stage hears later
// commands of the same user.
//
// The uid of who knocks is not enough: root of a container has the uid of the
// user, and a directory of the host that is bound into the container may show
// it the socket. So whoever knocks shows its user namespace, as an open file. A
// process cannot open the namespace file of one that is outside of its own user
// namespace (ptrace_may_access), nor ask for the parent of its own
// (NS_GET_PARENT gives EPERM), so the file is proof of being where the stage was
// started from.

// kindKnock is the first message on a door; its file is the user namespace.
const kindKnock = "knock"

// knockTime bounds the wait for it. It is sent at once, but where many start together whoever knocks may have to wait for a processor.
const knockTime = time.Minute

// ErrNobody says that nobody listens at the door, or no longer.
var ErrNobody = errors.New("nobody listens")

// Namespace identifies a namespace of this boot.
type Namespace struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// UserNamespace identifies the user namespace of this process.
func UserNamespace() (Namespace, error) {
	var st unix.Stat_t
	if err := unix.Stat(userNSFile, &st); err != nil {
		return Namespace{}, fmt.Errorf("stat %s: %w", userNSFile, err)
	}
	return Namespace{Dev: st.Dev, Ino: st.Ino}, nil
}

const userNSFile = "/proc/self/ns/user"

// Door is a listening socket.
type Door struct {
	l       *net.UnixListener
	outside Namespace
}

// Listen makes the socket name in an open directory: a socket's address holds
// 108 bytes, and directories may lie deep. Only processes of this uid that live
// in the user namespace outside are let in.
func Listen(dir *os.File, name string, outside Namespace) (*Door, error) {
	l, err := net.ListenUnix("unixpacket", doorAddr(dir, name))
	if err != nil {
		return nil, fmt.Errorf("listen at %s in %s: %w", name, dir.Name(), err)
	}
	l.SetUnlinkOnClose(false) // by then the name may be another's
	return &Door{l: l, outside: outside}, nil
}

func doorAddr(dir *os.File, name string) *net.UnixAddr {
	return &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), Net: "unixpacket"}
}

// Serve calls serve for each who is let in, each time in a goroutine of its
// own, until the door is closed. serve owns the channel.
func (d *Door) Serve(serve func(*Conn)) {
	for {
		u, err := d.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // EMFILE, or whoever knocked is gone again
			time.Sleep(time.Millisecond)
			continue
		}
		go func() {
			if c, err := d.admit(u); err == nil {
				serve(c)
			}
		}()
	}
}

// Close ends Serve; the socket's name stays.
func (d *Door) Close() error { return d.l.Close() }

// admit lets in who may come, and closes u otherwise.
func (d *Door) admit(u *net.UnixConn) (*Conn, error) {
	c := &Conn{unix: u}
	if err := d.check(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (d *Door) check(c *Conn) error {
	uid, err := peerUID(c.unix)
	if err != nil {
		return err
	}
	if uid != os.Getuid() {
		return fmt.Errorf("knock: uid %d is not let in", uid)
	}
	if err := c.unix.SetReadDeadline(time.Now().Add(knockTime)); err != nil {
		return err
	}
	m, err := c.Expect(kindKnock)
	if err != nil {
		return err
	}
	defer m.Close()
	if len(m.Files) != 1 {
		return fmt.Errorf("knock: got %d files", len(m.Files))
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(m.Files[0].Fd()), &st); err != nil {
		return fmt.Errorf("knock: %w", err)
	}
	if (Namespace{Dev: st.Dev, Ino: st.Ino}) != d.outside {
		return errors.New("knock: from another user namespace")
	}
	return c.unix.SetReadDeadline(time.Time{})
}

// peerUID is the uid of who connected, as this user namespace shows it.
func peerUID(u *net.UnixConn) (int, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	return int(cred.Uid), nil
}

// Dial knocks at the door name in an open directory. The error is ErrNobody if
// nobody listens there. Whether one is let in shows at the first answer: io.EOF
// if not. The listener must be of this process's uid.
func Dial(dir *os.File, name string) (*Conn, error) {
	u, err := net.DialUnix("unixpacket", nil, doorAddr(dir, name))
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return nil, ErrNobody
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s in %s: %w", name, dir.Name(), err)
	}
	c := &Conn{unix: u}
	if err := c.knock(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Conn) knock() error {
	uid, err := peerUID(c.unix)
	if err != nil {
		return err
	}
	if uid != os.Geteuid() {
		return fmt.Errorf("the listener has uid %d, not %d", uid, os.Geteuid())
	}
	ns, err := os.Open(userNSFile)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = c.Send(kindKnock, nil, ns)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return ErrNobody
	}
	return err
}
