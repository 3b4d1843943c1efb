package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/archive"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/stage"
)

// Main is the main function of the stage __files.
func Main() {
	// What it starts asks for SIGKILL when its parent dies, which for the kernel is
	// the thread that started it: that of this goroutine.
	runtime.LockOSThread()
	// Modes are as the stream says.
	unix.Umask(0)
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	s := &server{parent: parent}
	if err := errors.Join(s.serve(), s.close()); err != nil {
		os.Exit(125)
	}
	os.Exit(0)
}

type server struct {
	parent *handoff.Conn
	// root is the container's root, bare the same without what is mounted in it.
	root, bare *archive.Root
	union      *union // of a container that does not run
}

// serve answers requests until the command has no more.
func (s *server) serve() error {
	for {
		m, err := s.parent.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		kind, answer := kindDone, any(nil)
		if s.root == nil {
			kind, err = kindReady, s.begin(m)
		} else {
			answer, err = s.answer(m)
		}
		m.Close()
		if err != nil {
			kind, answer = kindFailed, stage.Failed{Error: err.Error(), Code: 1}
		}
		if err := s.parent.Send(kind, answer); err != nil {
			return err
		}
	}
}

// begin opens the container's root.
func (s *server) begin(m *handoff.Message) error {
	if len(m.Files) != 1 {
		return fmt.Errorf("container files: got %q with %d files first", m.Kind, len(m.Files))
	}
	if m.Kind == kindMount {
		var l Layers
		if err := m.Decode(&l); err != nil {
			return err
		}
		lock := m.Files[0]
		m.Files = nil
		return s.mount(l, lock)
	}
	var req enterRequest
	if err := m.Decode(&req); err != nil {
		return err
	}
	if err := becomeRoot(req.Root); err != nil {
		return err
	}
	open := func() (root, bare *os.File, err error) { return enter(m.Files[0]) }
	if req.Dir != "" {
		open = func() (root, bare *os.File, err error) { return openTwice(req.Dir) }
	}
	root, bare, err := open()
	if err != nil {
		return err
	}
	s.root, s.bare = newRoot(root), newRoot(bare)
	return nil
}

// enter opens the root of the mount namespace of a process, and a copy of the root
// mount, on which nothing is mounted. That only a thread in there may make
// (open_tree(2)); it ends with that.
func enter(pidfd *os.File) (root, bare *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		// A thread that shares its working directory with others can not change
		// its mount namespace.
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		if err = unix.Setns(int(pidfd.Fd()), unix.CLONE_NEWNS); err != nil {
			return
		}
		var fd int
		if fd, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		root = os.NewFile(uintptr(fd), "/")
		if fd, err = unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH); err == nil {
			bare = os.NewFile(uintptr(fd), "/")
		}
	}()
	<-done
	if err != nil {
		return nil, nil, fmt.Errorf("enter container: %w", err)
	}
	return root, bare, nil
}

// close gives up the container's files.
func (s *server) close() error {
	for _, r := range []*archive.Root{s.root, s.bare} {
		if r != nil {
			r.Close()
		}
	}
	s.root, s.bare = nil, nil
	u := s.union
	s.union = nil
	if u == nil {
		return nil
	}
	return u.close()
}

func (s *server) answer(m *handoff.Message) (any, error) {
	switch m.Kind {
	case kindStat:
		var req statRequest
		if err := m.Decode(&req); err != nil {
			return nil, err
		}
		return s.root.Stat(req.Path, req.Follow)
	case kindMkdir:
		var path string
		if err := m.Decode(&path); err != nil {
			return nil, err
		}
		return nil, s.root.Mkdir(path)
	case kindWrite:
		var req writeRequest
		if err := decodeWithFile(m, &req); err != nil {
			return nil, err
		}
		root := s.root
		if req.Bare {
			root = s.bare
		}
		err := root.Write(m.Files[0], req.Path, req.Options)
		if errors.Is(err, unix.EPIPE) {
			err = nil // the command has had enough, and knows why
		}
		return nil, err
	case kindExtract:
		var req extractRequest
		if err := decodeWithFile(m, &req); err != nil {
			return nil, err
		}
		return nil, s.root.Extract(m.Files[0], req.Dir, req.Options)
	case kindClose:
		return nil, s.close()
	case kindChanges:
		var l Layers
		if err := m.Decode(&l); err != nil {
			return nil, err
		}
		return changes(l, s.bare)
	case kindLayer:
		var l Layers
		if err := decodeWithFile(m, &l); err != nil {
			return nil, err
		}
		err := writeLayer(m.Files[0], l, s.bare)
		if errors.Is(err, unix.EPIPE) {
			err = nil // the command has had enough, and knows why
		}
		return nil, err
	}
	return nil, fmt.Errorf("container files: unknown request %q", m.Kind)
}

func decodeWithFile(m *handoff.Message, into any) error {
	if len(m.Files) != 1 {
		return fmt.Errorf("container files: %s with %d files", m.Kind, len(m.Files))
	}
	return m.Decode(into)
}
