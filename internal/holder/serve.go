package holder

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/orphans"
	"github.com/urun-dev/urun/internal/thrift"
	"github.com/urun-dev/urun/userns"
)

// Messages, besides those of handoff.Spawner.
const (
	kindStart     = "start" // files: the base, the holder's directory
	kindListening = "listening"
	kindLinger    = "linger" // holds from here on; no answer
	kindStatus    = "status"
)

type startRequest struct {
	Outside handoff.Namespace `json:"outside"`
	Key     string            `json:"key"`
	Path    string            `json:"path"` // of the directory
	Map     string            `json:"map"`
	// Outer: there is no user namespace, and perhaps no other.
	Outer bool `json:"outer,omitempty"`
}

type lingerRequest struct {
	Linger time.Duration `json:"linger"`
}

// holder is the state of the process, none of which matters to containers.
type holder struct {
	startRequest
	base, dir *os.File
	door      *handoff.Door
	spawner   handoff.Spawner
	servers   servers
	memory    thrift.Thrift

	// own are the pids of children that somebody waits for. Where orphans are adopted, none is started
	// while they are looked for.
	own     sync.Map
	forking sync.RWMutex

	mu     sync.Mutex
	stages int           // that it started and that live
	conns  int           // open channels
	linger time.Duration // after the last stage
	timer  *time.Timer   // running while there is neither stage nor channel
	ended  chan struct{}
	ending bool
}

// Main is the main function of the holder stage.
func Main() {
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	h, err := begin(parent)
	if err != nil {
		_ = parent.Send(KindFailed, Failed{Message: err.Error()}) // else nobody is left to be told
		os.Exit(125)
	}
	<-h.ended
	os.Exit(0)
}

// begin makes the door and answers on it and on the parent's channel.
func begin(parent *handoff.Conn) (*holder, error) {
	m, err := parent.Expect(kindStart)
	if err != nil {
		return nil, err
	}
	if len(m.Files) != 2 {
		return nil, fmt.Errorf("got %d files, want 2", len(m.Files))
	}
	h := &holder{base: m.Files[0], dir: m.Files[1], ended: make(chan struct{})}
	if err := m.Decode(&h.startRequest); err != nil {
		return nil, err
	}
	if h.Outer {
		if err := orphans.Adopt(); err != nil {
			return nil, err
		}
	}
	if err := h.listen(parent); err != nil {
		// The lock is this process's: nobody else would tidy up before the next command.
		return nil, errors.Join(err, removeDir(h.base, h.dir, h.Key))
	}
	h.opened()
	go h.serve(parent)
	go h.door.Serve(func(c *handoff.Conn) {
		if h.opened() {
			h.serve(c)
		} else {
			c.Close() // whoever it is starts another holder
		}
	})
	return h, nil
}

func (h *holder) listen(parent *handoff.Conn) (err error) {
	if h.spawner.Exe, err = userns.CloneExe(); err != nil {
		return err
	}
	h.spawner.Allowed, h.spawner.Keeper = []string{handoff.Infra, handoff.Monitor, handoff.Files}, h.channel
	h.servers.starts = func(start func() (pid int)) {
		h.forking.RLock()
		defer h.forking.RUnlock()
		if pid := start(); pid > 0 {
			h.own.Store(pid, nil)
		}
	}
	h.servers.exe, h.servers.path, h.servers.all = h.spawner.Exe, h.Path, map[string]*server{}
	// What a killed predecessor left is in the way of the socket.
	if err := errors.Join(removeAt(h.dir, doorName), openStderr(h.dir)); err != nil {
		return err
	}
	h.spawner.Stderr = os.Stderr
	if h.door, err = handoff.Listen(h.dir, doorName, h.Outside); err != nil {
		return err
	}
	return parent.Send(kindListening, nil)
}

// opened counts a channel; false if the holder is ending.
func (h *holder) opened() bool { return h.count(&h.conns, 1) }

// count changes the number of channels or of stages, and starts or stops the
// time to linger.
func (h *holder) count(what *int, by int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending {
		return false
	}
	*what += by
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	if h.conns == 0 && h.stages == 0 {
		h.timer = time.AfterFunc(h.linger, h.end)
	}
	return true
}

// end ends the holder if it is idle still.
func (h *holder) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending || h.conns > 0 || h.stages > 0 {
		return
	}
	h.ending = true
	h.servers.close()
	// A directory that cannot be removed now is removed by Sweep.
	_ = removeDir(h.base, h.dir, h.Key)
	_ = h.door.Close()
	close(h.ended)
}

// channel makes a channel to the holder and returns the far end, nil if there is
// none to be had.
func (h *holder) channel() *os.File {
	ours, theirs, err := handoff.Pair()
	if err != nil {
		return nil
	}
	if !h.opened() {
		ours.Close()
		theirs.Close()
		return nil
	}
	go h.serve(ours)
	return theirs
}

// serve answers on one channel.
func (h *holder) serve(c *handoff.Conn) {
	s := session{holder: h, conn: c}
	defer h.count(&h.conns, -1)
	defer c.Close()
	defer s.leave()
	for {
		m, err := c.Recv()
		if err != nil || !s.answer(m) {
			return
		}
	}
}

// session is a channel with what it uses.
type session struct {
	*holder
	conn  *handoff.Conn
	using []*server
}

func (s *session) leave() {
	for _, sv := range s.using {
		s.servers.leave(sv)
	}
}

// answer answers one message; false ends the session. That an answer cannot be
// sent is no matter: whoever asked is gone.
func (s *session) answer(m *handoff.Message) (goOn bool) {
	defer s.memory.Busy()
	switch m.Kind {
	case kindLinger:
		s.setLinger(m)
	case handoff.KindSpawn:
		if cmd := s.spawn(m); cmd != nil {
			s.count(&s.stages, 1)
			go s.reap(cmd)
		}
	case kindImage:
		s.image(m)
	case kindChannel:
		if f := s.channel(); f != nil {
			_ = s.conn.Send(kindChannel, nil, f)
			f.Close()
			break
		}
		_ = s.conn.Send(KindFailed, Failed{Message: "the holder is ending"})
	case kindRelease:
		s.servers.release()
		_ = s.conn.Send(kindRelease, nil)
	case kindStatus:
		_ = s.conn.Send(kindStatus, s.status())
	default:
		m.Close()
		return false
	}
	return true
}

func (h *holder) setLinger(m *handoff.Message) {
	var l lingerRequest
	if m.Decode(&l) != nil || l.Linger < 0 {
		return
	}
	h.mu.Lock()
	h.linger = l.Linger
	h.mu.Unlock()
	h.servers.setLinger(l.Linger)
}

// image gives a mount of an image, in use as long as the channel is open.
func (s *session) image(m *handoff.Message) {
	mount, process, err := s.mounted(m)
	if err != nil {
		f := Failed{Message: err.Error()}
		var hinted interface{ Hint() string }
		if errors.As(err, &hinted) {
			f.Cure = hinted.Hint()
		}
		_ = s.conn.Send(KindFailed, f)
		return
	}
	_ = s.conn.Send(kindImage, nil, mount, process)
	mount.Close()
}

func (s *session) mounted(m *handoff.Message) (mount, process *os.File, err error) {
	var img Image
	if err := m.Decode(&img); err != nil {
		return nil, nil, err
	}
	sv, err := s.servers.use(img)
	if err != nil {
		return nil, nil, err
	}
	s.using = append(s.using, sv)
	mount, err = sv.clone()
	return mount, sv.process, err
}

func (s *session) spawn(m *handoff.Message) *exec.Cmd {
	h := s.holder
	h.forking.RLock()
	defer h.forking.RUnlock()
	cmd := h.spawner.Answer(s.conn, m)
	if cmd != nil {
		h.own.Store(cmd.Process.Pid, nil)
	}
	return cmd
}

func (h *holder) reap(cmd *exec.Cmd) {
	_ = cmd.Wait() // how it ended concerns its own command
	h.own.Delete(cmd.Process.Pid)
	if h.Outer {
		h.endOrphans()
	}
	// What stays is removed by the next command.
	_ = removeCgroups(cmd.Process.Pid)
	h.count(&h.stages, -1)
}

// endOrphans ends what a monitor that was killed has left of a container without a pid
// namespace. Of one that ended by itself there is nothing.
func (h *holder) endOrphans() {
	h.forking.Lock()
	defer h.forking.Unlock()
	// What is not ended now is at the next monitor's end.
	_ = orphans.End(func(pid int) bool { _, own := h.own.Load(pid); return own })
}

func (h *holder) status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Status{PID: os.Getpid(), Map: h.Map, Stages: h.stages, Linger: h.linger, Images: h.servers.status()}
}
