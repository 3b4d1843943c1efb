package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/rootfs"
)

// servers are the image servers under a holder, one for each image in use or
// lately used. Containers get clones of a server's mount, so that all share what
// the kernel has cached of it.
type servers struct {
	exe  *os.File // this binary
	path string   // the holder's directory, in the holder's mount namespace
	// starts is called with what starts a process, and notes its pid.
	starts func(start func() (pid int))

	mu  sync.Mutex
	all map[string]*server
	// at is a tmpfs that only this mount namespace has. The mounts are attached
	// in it: before Linux 6.15 a detached mount cannot be cloned (open_tree(2)).
	at     *os.File
	next   int
	linger time.Duration // of a server that is not used
}

// server is one image server.
type server struct {
	image Image
	key   string
	name  string // of its mount point in at

	started chan struct{} // closed when the rest is known
	err     error
	mount   *os.File
	// The server's wishes, and the end of listing them.
	listings *os.File
	listed   chan struct{}
	process  *os.File // pidfd
	pid      int
	ended    chan struct{}

	users int
	timer *time.Timer
}

// use returns the server of an image, with one more user.
func (s *servers) use(img Image) (*server, error) {
	key, err := serverKey(img)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	sv := s.all[key]
	if sv == nil || sv.dead() {
		sv = &server{image: img, key: key, name: strconv.Itoa(s.next), started: make(chan struct{}), ended: make(chan struct{}), listed: make(chan struct{})}
		s.next++
		s.all[key] = sv
		go s.start(sv)
	}
	sv.users++
	if sv.timer != nil {
		sv.timer.Stop()
		sv.timer = nil
	}
	s.mu.Unlock()
	<-sv.started
	if sv.err != nil {
		s.leave(sv)
		return nil, sv.err
	}
	return sv, nil
}

// serverKey identifies the files, not only their names: a tree that was made
// again because it was damaged is another.
func serverKey(img Image) (string, error) {
	img.ID = ""
	raw, err := json.Marshal(img)
	if err != nil {
		return "", fmt.Errorf("serve image: %w", err)
	}
	for _, path := range append([]string{img.Tree}, img.Data...) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return "", fmt.Errorf("serve image: stat %s: %w", path, err)
		}
		raw = fmt.Append(raw, st.Dev, st.Ino, st.Size, st.Mtim)
	}
	return string(raw), nil
}

// dead says whether the process has ended, also when it was not reaped yet.
func (sv *server) dead() bool {
	select {
	case <-sv.started:
	default:
		return false
	}
	if sv.err != nil {
		return true
	}
	poll := []unix.PollFd{{Fd: int32(sv.process.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// leave takes a user away. A server without users ends after a time.
func (s *servers) leave(sv *server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sv.users--; sv.users > 0 {
		return
	}
	sv.timer = time.AfterFunc(s.linger, func() { s.endUnused(sv) })
}

func (s *servers) endUnused(sv *server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sv.users == 0 {
		s.end(sv)
	}
}

// end takes a server's mount away, with which it ends; s.mu is held.
func (s *servers) end(sv *server) {
	if s.all[sv.key] != sv {
		return // ended already
	}
	delete(s.all, sv.key)
	if sv.err == nil {
		s.detach(sv)
	}
}

func (s *servers) detach(sv *server) {
	sv.listings.Close()
	go func() { // the server may take its time to answer
		<-sv.listed
		sv.mount.Close()
	}()
	place := fmt.Sprintf("/proc/self/fd/%d/%s", s.at.Fd(), sv.name)
	// MNT_DETACH: it is not busy but with clones, which are the containers'.
	_ = unix.Unmount(place, unix.MNT_DETACH)
	_ = unix.Unlinkat(int(s.at.Fd()), sv.name, unix.AT_REMOVEDIR)
}

// release ends the servers that nobody uses and waits for their end.
func (s *servers) release() {
	s.mu.Lock()
	var gone []*server
	for _, sv := range s.all {
		if sv.users == 0 {
			s.end(sv)
			gone = append(gone, sv)
		}
	}
	s.mu.Unlock()
	for _, sv := range gone {
		if sv.err == nil {
			sv.await(endTime)
		}
	}
}

// endTime is what a server gets to end by itself when its mount is gone.
const endTime = 2 * time.Second

func (sv *server) await(limit time.Duration) {
	select {
	case <-sv.ended:
	case <-time.After(limit):
		_ = unix.PidfdSendSignal(int(sv.process.Fd()), unix.SIGKILL, nil, 0)
		<-sv.ended
	}
}

// start starts the process and attaches its mount.
func (s *servers) start(sv *server) {
	defer close(sv.started)
	cmd, err := s.launch(sv)
	if err != nil {
		sv.err = err
		s.mu.Lock()
		defer s.mu.Unlock()
		s.end(sv) // the next one tries again
		return
	}
	go func() {
		_ = cmd.Wait() // its users see the pidfd
		close(sv.ended)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.end(sv)
	}()
}

func (s *servers) launch(sv *server) (*exec.Cmd, error) {
	cmd, conn, err := handoff.Command(fmt.Sprintf("/proc/self/fd/%d", s.exe.Fd()), handoff.Union)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// It outlives the holder, if that is killed: containers go on.
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: handoff.AllCapabilities(), Setsid: true}
	cmd.Stderr = os.Stderr // see stderrName
	s.starts(func() int {
		if err = cmd.Start(); err != nil {
			return 0
		}
		return cmd.Process.Pid
	})
	if err != nil {
		return nil, fmt.Errorf("start the image server: %w", err)
	}
	handoff.Donated(cmd)
	if err = s.settle(sv, cmd, conn); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	return cmd, nil
}

// settle takes the mount from a server that is starting.
func (s *servers) settle(sv *server, cmd *exec.Cmd, conn *handoff.Conn) (err error) {
	sv.pid = cmd.Process.Pid
	ours, theirs, err := fuseunion.Listings()
	if err != nil {
		return err
	}
	defer func() { // what is not the server's by then
		err = errors.Join(err, theirs.Close())
		if sv.listings == nil {
			err = errors.Join(err, ours.Close())
		}
	}()
	if err := conn.Send(KindServe, sv.image, theirs); err != nil {
		return err
	}
	m, err := conn.Recv()
	if err != nil {
		return fmt.Errorf("the image server ended at its start: %w", err)
	}
	defer m.Close()
	if m.Kind != KindMounted || len(m.Files) != 1 {
		f := &Failed{}
		return errors.Join(m.Decode(f), f)
	}
	fd, err := unix.PidfdOpen(sv.pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	sv.process = os.NewFile(uintptr(fd), "image server")
	if sv.mount, err = s.attach(sv.name, m.Files[0]); err != nil {
		return errors.Join(err, sv.process.Close())
	}
	sv.listings = ours
	go sv.list()
	return nil
}

// list does what the server wishes, until detach takes the way to it or it dies. While it
// has a directory open the mount can not go away.
func (sv *server) list() {
	defer close(sv.listed)
	_ = fuseunion.ReadListings(sv.mount, sv.listings) // nobody depends on it
}

// attach attaches a detached mount and returns it as it is in its place.
func (s *servers) attach(name string, mount *os.File) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		at, err := rootfs.Memory(s.path)
		if err != nil {
			return nil, fmt.Errorf("place for image mounts: %w", err)
		}
		s.at = at
	}
	if err := unix.Mkdirat(int(s.at.Fd()), name, 0o700); err != nil {
		return nil, fmt.Errorf("place for an image mount: %w", err)
	}
	if err := unix.MoveMount(int(mount.Fd()), "", int(s.at.Fd()), name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("attach image mount: %w", err)
	}
	fd, err := unix.FcntlInt(mount.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("image mount: %w", err)
	}
	return os.NewFile(uintptr(fd), "image mount"), nil
}

// clone returns a detached clone of the server's mount.
func (sv *server) clone() (*os.File, error) {
	fd, err := unix.OpenTree(int(sv.mount.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone image mount: %w", err)
	}
	return os.NewFile(uintptr(fd), "image mount"), nil
}

// close ends all servers when the holder ends.
func (s *servers) close() {
	s.release()
	if s.at != nil {
		_ = unix.Unmount(s.path, unix.MNT_DETACH) // it goes with the mount namespace, if not so
	}
}

// setLinger holds from the next time on that a server is not used any more.
func (s *servers) setLinger(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.linger = d
}

// status lists the servers that run.
func (s *servers) status() (all []ImageStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.all {
		select {
		case <-sv.started:
			if sv.err == nil {
				all = append(all, ImageStatus{ID: sv.image.ID, PID: sv.pid, Users: sv.users})
			}
		default:
		}
	}
	return all
}
