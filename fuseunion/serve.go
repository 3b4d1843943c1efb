package fuseunion

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// IDRange is a run of user or group ids.
type IDRange struct{ First, Count uint32 }

// ServeOptions say how a tree is shown.
type ServeOptions struct {
	// The ids that are mapped in the mount's user namespace, as seen inside it; none
	// means all. An inode with another owner would be of no use: nothing may be
	// written to it or copied up from it (EOVERFLOW).
	UIDs, GIDs []IDRange
	// What the kernel is told instead of an id that is not mapped.
	SquashUID, SquashGID uint32

	// List, if it is there, is told the paths of directories that should be listed through the
	// mount by another process, because somebody walks through the tree (SendListings, ReadListings).
	// It is called while a request waits, by one goroutine at a time. Listings then leave the
	// attributes of files out where nobody seems to want them.
	List func(dirs []string) `json:"-"`

	Readers int          // goroutines that answer requests, at most; default max(2, CPUs)
	Log     *slog.Logger // default: silent
}

// Owner is how the owner of a file is shown.
func (o *ServeOptions) Owner(uid, gid uint32) (shownUID, shownGID uint32) {
	return mapID(uid, o.UIDs, o.SquashUID), mapID(gid, o.GIDs, o.SquashGID)
}

const (
	maxRequest = 1 << 20 // of file data in one READ
	// FUSE_MIN_READ_BUFFER is 8192; no request to a read-only file system is larger
	// than a name, and the kernel refuses a buffer smaller than max_write plus a
	// header (fuse_dev_do_read).
	requestBuffer = maxRequest + 4096
	replyBuffer   = maxRequest + 4096
)

// Serve answers the requests of a mount that Mount made for dev, until the mount
// goes away, and then returns nil. When ctx ends it stops answering and returns
// ctx's error; requests then wait until dev is closed. It does not close dev.
//
// Of the extended attributes it shows user.*, security.capability and POSIX ACLs;
// not user.overlay.*, with which a layer could give orders to an overlayfs above,
// nor other security.* and trusted.* names, which nothing in a user namespace may
// set, so that overlayfs could not copy such a file up.
func Serve(ctx context.Context, dev *os.File, tree *Tree, opt ServeOptions) error {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	raw := newRawFS(tree, opt)
	defer func() { raw.ahead.made() }()
	return serve(ctx, dev, newProtocol(raw, opt), opt, func(s *server) {
		raw.push = newPusher(s.fd, tree, opt.Log)
		raw.push.start()
		s.quiesce = append(s.quiesce, raw.push.stop)
		if opt.List != nil {
			raw.ahead = s.lookAhead(tree, opt)
		}
	})
}

// lookAhead starts what has the directories of a tree listed.
func (s *server) lookAhead(tree *Tree, opt ServeOptions) *ahead {
	a := newAhead(s.fd, tree, opt.List, opt.Log)
	a.start()
	s.quiesce = append(s.quiesce, a.stop)
	return a
}

// serve runs the loops that read requests and have p answer them. Before they
// start, prepare is called.
func serve(ctx context.Context, dev *os.File, p protocol, opt ServeOptions, prepare func(*server)) error {
	if opt.Readers <= 0 {
		opt.Readers = max(2, runtime.NumCPU())
	}
	fd, err := rawFD(dev)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(dev) // the loops know the number alone; a finalizer would close it
	// Go opens devices non-blocking; a reader must sleep in read(2).
	if err := unix.SetNonblock(fd, false); err != nil {
		return fmt.Errorf("set fuse device blocking: %w", err)
	}
	s := newServer(fd, p, opt.Readers)
	prepare(s)
	stop := context.AfterFunc(ctx, s.interrupt)
	defer stop()
	s.run()
	if err := errors.Join(s.errs...); err != nil {
		return err // what else writes may wait for an answer, until dev is closed
	}
	s.quieten()
	if s.stopped.Load() {
		return context.Cause(ctx)
	}
	return nil
}

// protocol is what answers requests.
type protocol struct {
	fs  fuse.RawFileSystem
	ps  *fuse.ProtocolServer
	opt *fuse.MountOptions
}

func protocolOf(fs fuse.RawFileSystem, opt *fuse.MountOptions) protocol {
	return protocol{fs, fuse.NewProtocolServer(fs, opt), opt}
}

func newProtocol(raw *rawFS, opt ServeOptions) protocol {
	tree := raw.t
	logger := slog.NewLogLogger(opt.Log.Handler(), slog.LevelWarn)
	return protocolOf(raw, &fuse.MountOptions{
		Name:                     "urun",
		MaxWrite:                 maxRequest,
		MaxReadAhead:             maxRequest,
		MaxBackground:            64,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		EnableAcl:                tree.m.hdr.flags&headerHasACLs != 0,
		// With no attribute anywhere ENOSYS ends all questions about them.
		DisableXAttrs: tree.m.hdr.flags&headerHasXattrs == 0,
		Logger:        logger,
		PanicHandler:  panicHandler(logger),
	})
}

// panicHandler turns a panic in the answer to one request into EIO for whoever
// asked: a page of the tree that cannot be read (SIGBUS) is one.
func panicHandler(logger *log.Logger) func(any) fuse.Status {
	return func(obj any) fuse.Status {
		logger.Printf("answer a fuse request: %v\n%s", obj, debug.Stack())
		return fuse.EIO
	}
}

// loop reads and answers requests. Its buffers are its own, so that nothing is
// allocated or locked between a read and the reply.
func (s *server) loop() error {
	// A mapped page whose file was cut short or whose disk fails gives SIGBUS: here
	// it becomes a panic that the protocol server catches.
	debug.SetPanicOnFault(true)
	in := make([]byte, requestBuffer)
	out := make([]byte, replyBuffer)
	ins, outs := make([][]byte, 1), [][]byte{out}
	h := hot{fs: s.fs, noXattrs: s.opt.DisableXAttrs, failed: s.opt.PanicHandler}
	l := s.enter()
	defer s.exit(l)
	for {
		start := s.now()
		n, err := unix.Read(s.fd, in)
		switch {
		case err == nil:
		case err == unix.ENODEV: // unmounted, or aborted by the administrator
			return nil
		case err == unix.EINTR, err == unix.ENOENT: // ENOENT: the request was interrupted meanwhile
			continue
		case err == unix.EAGAIN:
			if s.stopped.Load() {
				return nil
			}
			return errors.New("fuse device is set non-blocking by another")
		default:
			return fmt.Errorf("read fuse device: %w", err)
		}
		now := s.now()
		s.begin(l, now, now-start)
		m, ok := h.answer(in[:n], out)
		status := fuse.OK
		if !ok {
			ins[0] = in[:n]
			m, status = s.ps.HandleRequest(ins, outs)
		}
		if status != fuse.OK {
			s.done(l)
			return fmt.Errorf("fuse request of %d bytes: %v", n, status)
		}
		if m > 0 {
			_, err = unix.Write(s.fd, out[:m])
		}
		s.done(l)
		switch err {
		case nil:
		case unix.ENODEV, unix.ENOENT, unix.EINTR: // ENOENT: whoever asked was interrupted and is gone.
			continue
		default:
			return fmt.Errorf("write fuse device: %w", err)
		}
		if s.surplus() {
			return nil
		}
	}
}

// quieten waits until nothing but the loops writes to the device. It may be called again.
func (s *server) quieten() {
	for _, end := range s.quiesce {
		end()
	}
}

// interrupt ends the loops. A read that sleeps is restarted after a signal
// (SA_RESTART) and then sees that the device is non-blocking.
func (s *server) interrupt() {
	s.quieten() // while the loops answer
	s.stopped.Store(true)
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return // the device is closed, and with it the loops are ended
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			// SIGURG is the Go runtime's own, and harmless where it is not awaited. A
			// thread that has ended meanwhile needs none.
			_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		}
	}
}
