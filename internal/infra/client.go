package infra

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/slirp"
)

const (
	// SocketName, for monitors, DoorName, for commands, and LockName are in the directory of networks.
	SocketName = "infra.sock"
	DoorName   = "infra.door"
	LockName   = "infra.lock"
	// startTime bounds the wait for a process that somebody else starts.
	startTime = 20 * time.Second
)

// Options say how the process is reached, and started if there is none.
type Options struct {
	Root string
	// Exe is this binary, such that nobody can write to it.
	Exe *os.File
	// Keeper makes a channel to the holder for the process; nil where the holder is gone.
	Keeper func() *os.File
	// Outside and Map are as in Start.
	Outside handoff.Namespace
	Map     string
	// NetNS is what Client.NetNS was of a process that is gone; nil at first.
	NetNS *os.File
	Hello Hello
}

// Client is a monitor's connection.
type Client struct {
	// NetNS is the process's network namespace.
	NetNS *os.File

	conn    *handoff.Conn
	mu      sync.Mutex // one request at a time
	answers chan *handoff.Message
	gone    chan struct{}
}

// Connect connects to the process, starting it if there is none.
func Connect(opt Options) (*Client, error) {
	nets, err := network.Open(opt.Root)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(nets.Dir())
	if err != nil {
		return nil, fmt.Errorf("connect to the bridges: %w", err)
	}
	defer dir.Close()
	for end := time.Now().Add(startTime); ; time.Sleep(2 * time.Millisecond) {
		c, err := dial(dir, opt.Hello)
		if !errors.Is(err, handoff.ErrNobody) {
			return c, err
		}
		st := Start{Root: opt.Root, Outside: opt.Outside, Map: opt.Map}
		if err := start(dir, opt.execute, st, opt.NetNS); err != nil && !errors.Is(err, errStarting) {
			return nil, fmt.Errorf("start bridges: %w", err)
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("connect to the bridges: %w", err)
		}
	}
}

// Address is the socket's, through an open directory: a socket's address holds 108 bytes, and stores may lie deep.
func Address(dir *os.File) *net.UnixAddr {
	return &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), SocketName), Net: "unixpacket"}
}

// dial connects and says who it is. The error is handoff.ErrNobody where nobody listens or the process is ending.
func dial(dir *os.File, hello Hello) (*Client, error) {
	u, err := net.DialUnix("unixpacket", nil, Address(dir))
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNRESET) {
		return nil, handoff.ErrNobody
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the bridges: %w", err)
	}
	f, err := u.File()
	if err = errors.Join(err, u.Close()); err != nil {
		return nil, err
	}
	conn, err := handoff.FromFile(f)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, answers: make(chan *handoff.Message), gone: make(chan struct{})}
	go c.read()
	if err := c.hello(hello); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

func (c *Client) hello(h Hello) error {
	m, err := c.ask(KindHello, h, KindWelcome)
	if err != nil {
		if gone(err) {
			return handoff.ErrNobody
		}
		return err
	}
	if len(m.Files) != 1 {
		return fmt.Errorf("bridges: got %d files", len(m.Files))
	}
	c.NetNS = m.Files[0]
	return nil
}

// read takes answers until the connection ends.
func (c *Client) read() {
	defer close(c.gone)
	for {
		m, err := c.conn.Recv()
		if err != nil {
			return
		}
		c.answers <- m
	}
}

func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// errStarting says that somebody else starts the process, or that it is ending.
var errStarting = errors.New("is being started by another process")

// start starts the process, by begin, if its lock is free.
func start(dir *os.File, begin func() (*handoff.Conn, error), st Start, netns *os.File) error {
	lock, err := os.OpenFile(filepath.Join("/proc/self/fd", fmt.Sprint(dir.Fd()), LockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return errStarting
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	conn, err := begin()
	if err != nil {
		return err
	}
	defer conn.Close()
	files := []*os.File{lock}
	if st.HasNetNS = netns != nil; st.HasNetNS {
		files = append(files, netns)
	}
	if err := conn.Send(KindStart, st, files...); err != nil {
		return err
	}
	m, err := conn.Recv()
	if err != nil {
		return fmt.Errorf("it ended at once: %w", err)
	}
	return failure(m)
}

// execute starts the process as a child of this one, which it outlives.
func (opt *Options) execute() (*handoff.Conn, error) {
	cmd, conn, err := handoff.Command(fmt.Sprintf("/proc/self/fd/%d", opt.Exe.Fd()), handoff.Infra)
	if err != nil {
		return nil, err
	}
	keeper := opt.Keeper()
	if keeper == nil {
		nobody, far, err := handoff.Pair()
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		nobody.Close()
		keeper = far
	}
	theirs := append(cmd.ExtraFiles, keeper)
	// The order in which handoff.Exe and handoff.Keeper expect them.
	cmd.ExtraFiles = []*os.File{theirs[0], opt.Exe, keeper}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: handoff.AllCapabilities(), Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	cmd.ExtraFiles = theirs
	handoff.Donated(cmd)
	go reap(cmd)
	return conn, nil
}

// Spawn has the process start a monitor in its user namespace, to which all containers on networks belong. begin
// starts the stage __infra in a user namespace with the id map of the key, for when there is no process.
func Spawn(root, mapKey string, begin func() (*handoff.Conn, error), stderr *os.File) (*handoff.Spawned, error) {
	nets, err := network.Open(root)
	if err != nil {
		return nil, err
	}
	outside, err := handoff.UserNamespace()
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(nets.Dir())
	if err != nil {
		return nil, fmt.Errorf("connect to the bridges: %w", err)
	}
	defer dir.Close()
	for end := time.Now().Add(startTime); ; time.Sleep(2 * time.Millisecond) {
		s, err := spawnOnce(dir, mapKey, stderr)
		if !errors.Is(err, handoff.ErrNobody) {
			return s, err
		}
		serr := start(dir, begin, Start{Root: root, Outside: outside, Map: mapKey}, nil)
		if serr != nil && !errors.Is(serr, errStarting) {
			return nil, fmt.Errorf("start bridges: %w", serr)
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("connect to the bridges: %w", err)
		}
	}
}

func spawnOnce(dir *os.File, mapKey string, stderr *os.File) (*handoff.Spawned, error) {
	conn, err := handoff.Dial(dir, DoorName)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.Send(KindAdmit, Admit{Map: mapKey}); err != nil {
		return nil, handoff.ErrNobody
	}
	m, err := conn.Recv()
	if err != nil {
		return nil, handoff.ErrNobody
	}
	if err := failure(m); err != nil {
		return nil, err
	}
	return conn.Spawn(handoff.Monitor, stderr)
}

// reap waits for the process; what it has to say comes over channels.
func reap(cmd *exec.Cmd) { _ = cmd.Wait() }

// failure is the error that a message reports, or nil.
func failure(m *handoff.Message) error {
	if m.Kind != KindFailed {
		return nil
	}
	f := &Failure{}
	if err := m.Decode(f); err != nil {
		return err
	}
	return f
}

// ask sends a request and waits for its answer.
func (c *Client) ask(kind string, body any, want string, files ...*os.File) (*handoff.Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.Send(kind, body, files...); err != nil {
		return nil, err
	}
	var m *handoff.Message
	select {
	case m = <-c.answers:
	case <-c.gone:
		return nil, io.EOF
	}
	if err := failure(m); err != nil {
		return nil, err
	}
	if m.Kind != want {
		m.Close()
		return nil, fmt.Errorf("bridges: answer %q to %q", m.Kind, kind)
	}
	return m, nil
}

// Join puts the container on a network; netns is the container's.
func (c *Client) Join(j Join, netns *os.File) error {
	_, err := c.ask(KindJoin, j, KindDone, netns)
	return err
}

// Leave takes the container off a network.
func (c *Client) Leave(networkID string) error {
	_, err := c.ask(KindLeave, Leave{NetworkID: networkID}, KindDone)
	return err
}

// Publish publishes ports of the container, instead of any from before, and gives them with what was chosen.
func (c *Client) Publish(ports []slirp.PortMapping) ([]slirp.PortMapping, error) {
	m, err := c.ask(KindPublish, ports, KindPublished)
	if err != nil {
		return nil, err
	}
	var bound []slirp.PortMapping
	return bound, m.Decode(&bound)
}

// Rename gives the container another name.
func (c *Client) Rename(name string) error {
	_, err := c.ask(KindRename, Rename{Name: name}, KindDone)
	return err
}

// Ended is closed when the process is gone, or Close was called.
func (c *Client) Ended() <-chan struct{} { return c.gone }

// Gone tells whether an error means that the process is gone.
func Gone(err error) bool { return gone(err) || errors.Is(err, net.ErrClosed) }

// Close leaves all networks.
func (c *Client) Close() error { return errors.Join(c.CloseConn(), c.NetNS.Close()) }

// CloseConn is Close, but NetNS stays open.
func (c *Client) CloseConn() error { return c.conn.Close() }
