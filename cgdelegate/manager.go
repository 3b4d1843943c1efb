package cgdelegate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// DefaultTimeout limits every call whose context has no deadline. It is that of systemd's own
// programs (sd_bus_set_method_call_timeout(3)).
const DefaultTimeout = 25 * time.Second

const (
	systemdName   = "org.freedesktop.systemd1"
	systemdPath   = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerIface  = systemdName + ".Manager"
	jobRemoved    = managerIface + ".JobRemoved"
	modeReplace   = "replace"
	unitExists    = systemdName + ".UnitExists"
	resultDone    = "done"
	busServerName = "org.freedesktop.DBus"
)

// address is a socket on which a systemd manager can be had.
type address struct {
	way  Way
	path string // "@name" is an abstract socket
	bus  bool   // a message bus, not the manager itself
}

// addresses returns the sockets to try, in order. The private sockets have no bus in
// between, but systemd promises nothing about them, so they come second.
func addresses(uid int, getenv func(string) string) []address {
	var as []address
	add := func(a address) {
		for _, b := range as {
			if a.path == b.path {
				return
			}
		}
		as = append(as, a)
	}
	if uid == 0 {
		return []address{
			{SystemManager, "/run/dbus/system_bus_socket", true},
			{SystemManager, "/run/systemd/private", false},
		}
	}
	for part := range strings.SplitSeq(getenv("DBUS_SESSION_BUS_ADDRESS"), ";") {
		rest, ok := strings.CutPrefix(part, "unix:")
		for kv := range strings.SplitSeq(rest, ",") {
			if path, is := strings.CutPrefix(kv, "path="); ok && is {
				add(address{UserManager, path, true})
			}
			if name, is := strings.CutPrefix(kv, "abstract="); ok && is {
				add(address{UserManager, "@" + name, true})
			}
		}
	}
	dirs := []string{"/run/user/" + strconv.Itoa(uid)}
	if d := getenv("XDG_RUNTIME_DIR"); d != "" {
		dirs = append([]string{d}, dirs...)
	}
	for _, d := range dirs {
		add(address{UserManager, d + "/bus", true})
	}
	for _, d := range dirs {
		add(address{UserManager, d + "/systemd/private", false})
	}
	return as
}

// manager is a connection to a systemd manager.
type manager struct {
	conn *dbus.Conn
	addr address
	obj  dbus.BusObject
}

func (m *manager) close() error { return m.conn.Close() }

// connectManager connects to the first manager that answers. The deadline of ctx is
// put on the socket itself, so neither a full backlog nor a silent peer can hold us.
func connectManager(ctx context.Context, as []address) (*manager, error) {
	var errs []error
	for _, a := range as {
		m, err := dialManager(ctx, a)
		if err == nil {
			return m, nil
		}
		if u := (*UnavailableError)(nil); errors.As(err, &u) {
			return nil, err
		}
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, &UnavailableError{
				Cause: Timeout, Err: fmt.Errorf("the bus on %s does not answer: %w", a.path, context.DeadlineExceeded),
				Cure: "look at systemctl --user status dbus.service; as root: systemctl restart user@" + strconv.Itoa(os.Geteuid()) + ".service",
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("connect to %s: %w", a.path, err))
		}
	}
	return nil, noBus(errors.Join(errs...))
}

// noBus names what is missing where no socket answered.
func noBus(err error) error {
	if _, statErr := os.Stat("/run/systemd/system"); statErr != nil {
		reason := errors.New("systemd does not run here")
		return &UnavailableError{
			Cause: NoManager, Err: errors.Join(reason, err),
			Cure: "run urun where systemd is process 1, or in a writable cgroup v2 subtree (docker run --cgroupns=private with a writable /sys/fs/cgroup, a Slurm step with cgroup/v2)",
		}
	}
	uid := strconv.Itoa(os.Geteuid())
	return &UnavailableError{
		Cause: NoBus, Err: errors.Join(errors.New("no systemd user manager answers for uid "+uid), err),
		Cure: "log in by ssh, a console or machinectl shell instead of su or sudo, or as root: loginctl enable-linger " + uid + " (needs the packages dbus-user-session and libpam-systemd)",
	}
}

func dialManager(ctx context.Context, a address) (*manager, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", a.path)
	if err != nil {
		return nil, err
	}
	m, err := handshake(ctx, c.(*net.UnixConn), a)
	if err != nil {
		return nil, errors.Join(err, ignoreClosed(c.Close()))
	}
	return m, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func handshake(ctx context.Context, c *net.UnixConn, a address) (*manager, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if err := sameProcesses(c); err != nil {
		return nil, err
	}
	conn, err := dbus.NewConn(c, dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err != nil {
		return nil, err
	}
	if a.bus {
		if err := conn.Hello(); err != nil {
			return nil, err
		}
	}
	return &manager{conn: conn, addr: a, obj: conn.Object(systemdName, systemdPath)}, nil
}

// sameProcesses refuses a bus that was passed into a container: the process ids we
// would name mean other processes there. The kernel shows a peer outside of our
// pid namespace as pid 0.
func sameProcesses(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("ask for the peer of the bus: %w", credErr)
	}
	if cred.Pid == 0 {
		return &UnavailableError{
			Cause: ForeignBus, Err: errors.New("the bus belongs to another pid namespace"),
			Cure: "start the outer container with --pid=host, or do not pass the bus into it",
		}
	}
	return nil
}

// property and auxUnit have the D-Bus types (sv) and (sa(sv)).
type property struct {
	Name  string
	Value dbus.Variant
}

type auxUnit struct {
	Name       string
	Properties []property
}

// startScope starts a transient scope with o's processes and waits for the job.
func (m *manager) startScope(ctx context.Context, unit string, o Options) error {
	signals := make(chan *dbus.Signal, 64)
	m.conn.Signal(signals)
	props := []property{
		{"Description", dbus.MakeVariant(o.Description)},
		{"PIDs", dbus.MakeVariant(toUint32(o.PIDs))},
		{"Delegate", dbus.MakeVariant(true)},
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
		// systemd's default is a share of the machine, for what is one service.
		{"TasksMax", dbus.MakeVariant(uint64(math.MaxUint64))},
	}
	if o.Slice != "" {
		props = append(props, property{"Slice", dbus.MakeVariant(o.Slice)})
	}
	// The calls are sent one after the other without waiting: the manager and the bus
	// handle them in order, and each round trip costs a millisecond or more.
	if m.addr.bus {
		rule := "type='signal',interface='" + managerIface + "',member='JobRemoved',path='" + string(systemdPath) + "'"
		m.conn.Object(busServerName, "/org/freedesktop/DBus").GoWithContext(ctx, busServerName+".AddMatch", 0, nil, rule)
		// Without a subscriber systemd sends no signals to a bus.
		m.obj.GoWithContext(ctx, managerIface+".Subscribe", 0, nil)
	}
	var job dbus.ObjectPath
	err := m.obj.CallWithContext(ctx, managerIface+".StartTransientUnit", 0, unit, modeReplace, props, []auxUnit{}).Store(&job)
	if err != nil {
		return m.refused(ctx, "start "+unit, err)
	}
	for {
		select {
		case <-ctx.Done():
			return m.refused(ctx, "start "+unit, ctx.Err())
		case s, ok := <-signals:
			if !ok {
				return m.refused(ctx, "start "+unit, dbus.ErrClosed)
			}
			// JobRemoved(u id, o job, s unit, s result)
			if s.Name != jobRemoved || len(s.Body) != 4 || s.Body[1] != job {
				continue
			}
			if s.Body[3] != resultDone {
				return m.refused(ctx, "start "+unit, fmt.Errorf("job ended with %q", s.Body[3]))
			}
			return nil
		}
	}
}

func (m *manager) refused(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return &UnavailableError{
			Cause: Timeout, Err: fmt.Errorf("%s: systemd on %s does not answer: %w", op, m.addr.path, context.DeadlineExceeded),
			Cure: "look at systemctl --user status",
		}
	}
	cause, cure := Refused, ""
	if errors.Is(err, dbus.ErrClosed) || errors.Is(err, io.EOF) {
		err, cure = errors.New("the bus went away"), "look at systemctl --user status dbus.service, and try again"
	}
	if e := (dbus.Error{}); errors.As(err, &e) && e.Name == unitExists {
		cause, cure = Exists, "another scope has this name; choose another"
	}
	return &UnavailableError{Cause: cause, Err: fmt.Errorf("%s: %w", op, err), Cure: cure}
}

func toUint32(pids []int) []uint32 {
	out := make([]uint32, len(pids))
	for i, p := range pids {
		out[i] = uint32(p)
	}
	return out
}
