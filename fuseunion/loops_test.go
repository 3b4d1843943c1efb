package fuseunion

import (
	"encoding/binary"
	"log/slog"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// slowFS hangs in LOOKUP, and answers GETATTR.
type slowFS struct {
	fuse.RawFileSystem
	release chan struct{}
}

func (s *slowFS) Lookup(<-chan struct{}, *fuse.InHeader, string, *fuse.EntryOut) fuse.Status {
	<-s.release
	return fuse.ENOENT
}

func (s *slowFS) GetAttr(_ <-chan struct{}, _ *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.Mode = unix.S_IFDIR
	return fuse.OK
}

// loopServer serves a slowFS on a socket instead of the kernel's device, whose other end is returned.
func loopServer(t *testing.T, most int) (s *server, fs *slowFS, kernel int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fs = &slowFS{fuse.NewDefaultRawFileSystem(), make(chan struct{})}
	logger := slog.NewLogLogger(slog.DiscardHandler, slog.LevelWarn)
	s = newServer(fds[0], protocolOf(fs, &fuse.MountOptions{MaxWrite: maxRequest, Logger: logger, PanicHandler: panicHandler(logger)}), most)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.run()
	}()
	t.Cleanup(func() {
		unix.Close(fds[1]) // a request of no bytes: the loops end with an error
		<-ended
		unix.Close(fds[0])
	})
	return s, fs, fds[1]
}

// ask sends a request with an empty body, or a name.
func ask(t *testing.T, kernel int, opcode uint32, unique uint64, body string) {
	t.Helper()
	le := binary.NativeEndian
	b := make([]byte, unsafe.Sizeof(fuse.InHeader{}))
	le.PutUint32(b, uint32(len(b)+len(body)))
	le.PutUint32(b[4:], opcode)
	le.PutUint64(b[8:], unique)
	le.PutUint64(b[16:], 1)
	if _, err := unix.Write(kernel, append(b, body...)); err != nil {
		t.Fatal(err)
	}
}

// answered waits for an answer and returns whose it is.
func answered(t *testing.T, kernel int) uint64 {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(kernel), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Minute); ; {
		n, err := unix.Poll(p, 1000)
		if n == 1 {
			break
		}
		if err != nil && err != unix.EINTR || time.Now().After(end) {
			t.Fatalf("no answer: %v", err)
		}
	}
	b := make([]byte, replyBuffer)
	n, err := unix.Read(kernel, b)
	if err != nil || n < 16 {
		t.Fatalf("read an answer: %d bytes, %v", n, err)
	}
	return binary.NativeEndian.Uint64(b[8:])
}

const (
	opLookup  = 1
	opGetattr = 3
)

func TestRequestsAreAnsweredBesideOneThatHangs(t *testing.T) {
	s, fs, kernel := loopServer(t, 2)
	attr := string(make([]byte, 16))
	ask(t, kernel, opGetattr, 1, attr)
	if got := answered(t, kernel); got != 1 {
		t.Fatalf("answer to %d, want 1", got)
	}
	time.Sleep(2 * watchLasts) // nobody looks any more
	// All loops that there may be hang, and still there is one for the next request.
	for hung := range uint64(3) {
		ask(t, kernel, opLookup, 10+hung, "name\x00")
		ask(t, kernel, opGetattr, 20+hung, attr)
		if got := answered(t, kernel); got != 20+hung {
			t.Fatalf("%d requests hang: answer to %d, want %d", hung+1, got, 20+hung)
		}
	}
	close(fs.release)
	for range 3 {
		if got := answered(t, kernel); got < 10 || got > 12 {
			t.Errorf("answer to %d, want that of one which hung", got)
		}
	}
	// Those that are too many end when they have answered something.
	for i := uint64(100); s.active.Load() > s.want.Load(); i++ {
		ask(t, kernel, opGetattr, i, attr)
		if got := answered(t, kernel); got != i {
			t.Fatalf("answer to %d, want %d", got, i)
		}
	}
}

func TestLoopsHelpWhileRequestsWait(t *testing.T) {
	s, _, _ := loopServer(t, 2)
	l := &loopState{}
	request := func(waited time.Duration) {
		s.begin(l, s.now(), waited)
		s.done(l)
	}
	for range helpAfter - 1 {
		request(0)
	}
	request(time.Millisecond)
	for range helpAfter - 1 {
		request(0)
	}
	if got := s.want.Load(); got != 1 {
		t.Fatalf("%d loops before %d requests in a row had to wait", got, helpAfter)
	}
	for range 3 * helpAfter {
		request(0)
	}
	if got := s.want.Load(); got != 2 {
		t.Fatalf("%d loops while requests wait, want 2, which are the most", got)
	}
	for range 3 * endAfter {
		request(time.Millisecond)
	}
	if got := s.want.Load(); got != 1 {
		t.Fatalf("%d loops when requests are waited for, want 1", got)
	}
}
