package holder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/userns"
)

// Options say which holder is meant, and how it is to be started.
type Options struct {
	Exe string // this binary
	// Store is the directory of the containers, of use where there is no other
	// place for a socket.
	Store string
	Map   userns.Map
	// Linger is how long the holder stays after its last container.
	Linger time.Duration
}

// startTime bounds the wait for a holder that another command is starting.
const startTime = 2 * time.Minute

// The first tries follow each other fast; later ones leave the processors to the holder that is being started.
const (
	firstPause = time.Millisecond
	lastPause  = 50 * time.Millisecond
)

// Spawn has the holder start a stage, starting the holder if there is none.
// stderr may be nil.
func Spawn(opt Options, stage string, stderr *os.File) (*handoff.Spawned, error) {
	key, err := Key(opt.Map)
	if err != nil {
		return nil, err
	}
	base, err := openBase(opt.Store)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	pause := firstPause
	for end := time.Now().Add(startTime); ; pause = min(2*pause, lastPause) {
		s, err := spawnOnce(opt, base, key, stage, stderr)
		if !errors.Is(err, handoff.ErrNobody) {
			return s, err
		}
		// It is being started, or ended when it was asked.
		if time.Now().After(end) {
			return nil, fmt.Errorf("start stage %s: the holder in %s/%s does not answer: %w", stage, base.Name(), key, err)
		}
		time.Sleep(pause)
	}
}

// spawnOnce asks the holder that there is, else the one that it starts.
func spawnOnce(opt Options, base *os.File, key, stage string, stderr *os.File) (*handoff.Spawned, error) {
	dir, err := openKey(base, key)
	if errors.Is(err, unix.ENOENT) {
		return nil, handoff.ErrNobody // an ending holder took it away
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	conn, err := handoff.Dial(dir, doorName)
	if errors.Is(err, handoff.ErrNobody) {
		ok, lockErr := tryLock(dir)
		if lockErr != nil {
			return nil, lockErr
		}
		if !ok || !current(base, dir, key) {
			return nil, err
		}
		conn, err = start(opt, base, dir, key)
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.Send(kindLinger, lingerRequest{opt.Linger}); err != nil {
		return nil, fmt.Errorf("%w: %w", handoff.ErrNobody, err)
	}
	return conn.Spawn(stage, stderr)
}

// start starts a holder with the directory dir, whose lock the caller has and
// gives away, and returns a channel to it.
func start(opt Options, base, dir *os.File, key string) (*handoff.Conn, error) {
	outside, err := handoff.UserNamespace()
	if err != nil {
		return nil, err
	}
	cmd, conn, err := handoff.Command(opt.Exe, handoff.Holder)
	if err != nil {
		return nil, err
	}
	cmd.Dir = "/" // it must not keep a file system busy
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := userns.Start(cmd, opt.Map, unix.CLONE_NEWNS); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	handoff.Donated(cmd)
	go func() { _ = cmd.Wait() }() // reaps it; what it has to say comes over the channel
	if err := conn.Send(kindStart, startRequest{Outside: outside, Key: key, Path: dir.Name(), Map: opt.Map.String(), Outer: opt.Map.Outer}, base, dir); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	m, err := conn.Recv()
	if err == nil && m.Kind != kindListening {
		failed := &Failed{}
		if err = m.Decode(failed); err == nil {
			err = failed
		}
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it ended at its start")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the holder: %w", err), conn.Close())
	}
	return conn, nil
}

// Status is what a holder says of itself.
type Status struct {
	PID int `json:"pid"`
	// Dir is where its socket is.
	Dir string `json:"dir"`
	// Map is the id map as userns.Map's String has it.
	Map string `json:"map"`
	// Stages are the containers' monitors and other stages that it started.
	Stages int           `json:"stages"`
	Linger time.Duration `json:"linger"`
	Images []ImageStatus `json:"images,omitempty"`
}

// ImageStatus is an image server.
type ImageStatus struct {
	ID    string `json:"id"` // the image's
	PID   int    `json:"pid"`
	Users int    `json:"users"` // containers
}

// List asks all holders of the user that run this binary.
func List(store string) ([]Status, error) {
	var all []Status
	err := each(store, func(base, dir *os.File, key string) error {
		conn, err := handoff.Dial(dir, doorName)
		if errors.Is(err, handoff.ErrNobody) {
			return nil
		}
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.Send(kindStatus, nil); err != nil {
			return nil // it has ended meanwhile
		}
		m, err := conn.Recv()
		if errors.Is(err, io.EOF) || err == nil && m.Kind != kindStatus {
			return nil // it has ended, lets only others in, or is of another version
		}
		if err != nil {
			return err
		}
		var s Status
		if err := m.Decode(&s); err != nil {
			return err
		}
		s.Dir = filepath.Join(base.Name(), key)
		all = append(all, s)
		return nil
	})
	return all, err
}
