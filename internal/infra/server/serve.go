package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/infra"
	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/thrift"
	"github.com/urun-dev/urun/slirp/dnsproxy"
)

// server is the state of the process. All of it can be made anew from what the monitors say.
type server struct {
	infra.Start
	exe    *os.File
	holder *holder.Link
	lock   *os.File // held as long as the process lives
	thread *thread
	nl     *netlink.Handle // in the bridges' namespace
	userNS handoff.Namespace
	ctx    context.Context

	directory atomic.Pointer[directory]
	upstream  *dnsproxy.Upstream // of the host's resolv.conf
	main      chan func()        // run on the main thread
	ended     chan struct{}

	mu       sync.Mutex
	listener *net.UnixListener
	members  map[string]*member          // by container id
	networks map[string]*network.Network // by id, those with a member
	uplink   *uplink
	nextPort uint16
	spawned  int         // monitors that were started here and live
	timer    *time.Timer // running while there is neither
	ending   bool
}

// Main is the main function of the stage.
func Main() {
	// The network stage dies with this thread.
	runtime.LockOSThread()
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	s, err := begin(parent)
	if err != nil {
		_ = parent.Send(infra.KindFailed, failure(err)) // else nobody is left to be told
		os.Exit(125)
	}
	_ = parent.Send(infra.KindListening, nil) // who asked may be gone; others come
	parent.Close()
	var memory thrift.Thrift
	memory.Busy() // what only the start needed goes back
	for {
		select {
		case f := <-s.main:
			f()
		case <-s.ended:
			os.Exit(0)
		}
	}
}

func failure(err error) *infra.Failure {
	f := &infra.Failure{Message: err.Error()}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		f.Cure = hinted.Hint()
	}
	return f
}

// begin sets the process up and listens.
func begin(parent *handoff.Conn) (*server, error) {
	m, err := parent.Expect(infra.KindStart)
	if err != nil {
		return nil, err
	}
	s := &server{
		main: make(chan func()), ended: make(chan struct{}), ctx: context.Background(),
		members: map[string]*member{}, networks: map[string]*network.Network{},
	}
	s.directory.Store(&directory{})
	if err := m.Decode(&s.Start); err != nil {
		return nil, err
	}
	var netns *os.File
	switch want := len(m.Files); {
	case want == 2 && s.HasNetNS:
		netns = m.Files[1]
		defer netns.Close()
	case want != 1:
		return nil, fmt.Errorf("got %d files", want)
	}
	s.lock = m.Files[0]
	// For whoever wants to know which process it is.
	if err := errors.Join(s.lock.Truncate(0), writeAt(s.lock, fmt.Sprintf("%d\n", os.Getpid()))); err != nil {
		return nil, err
	}
	if s.exe, err = handoff.Exe(); err != nil {
		return nil, err
	}
	if s.holder, err = holder.NewLink(); err != nil {
		return nil, err
	}
	if s.userNS, err = handoff.UserNamespace(); err != nil {
		return nil, err
	}
	if s.thread, err = newThread(netns); err != nil {
		return nil, err
	}
	s.upstream = dnsproxy.NewUpstream(dnsproxy.Config{ResolvConf: "/etc/resolv.conf"})
	if err := errors.Join(s.prepare(), s.serveNames()); err != nil {
		return nil, err
	}
	return s, s.listen()
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func (s *server) listen() error {
	nets, err := network.Open(s.Root)
	if err != nil {
		return err
	}
	// That of a process before this one is dead: the lock is ours.
	for _, name := range []string{infra.SocketName, infra.DoorName} {
		if err := os.Remove(filepath.Join(nets.Dir(), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	dir, err := os.Open(nets.Dir())
	if err != nil {
		return err
	}
	defer dir.Close()
	if s.listener, err = net.ListenUnix("unixpacket", infra.Address(dir)); err != nil {
		return err
	}
	s.listener.SetUnlinkOnClose(false) // by then the name may be another's
	door, err := handoff.Listen(dir, infra.DoorName, s.Outside)
	if err != nil {
		return err
	}
	go door.Serve(s.admit)
	s.timer = time.AfterFunc(5*grace, s.end)
	go s.accept()
	return nil
}

func (s *server) accept() {
	for {
		u, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // EMFILE, or who called is gone again
			continue
		}
		go s.serve(u)
	}
}

// onMain runs f on the main thread.
func (s *server) onMain(f func() error) error {
	done := make(chan error, 1)
	s.main <- func() { done <- f() }
	return <-done
}
