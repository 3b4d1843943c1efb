package fuseunion

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxListing = 32 << 10 // of a message
	listers    = 2        // directories that are read at once
	// The kernel asks for as much as the reader has room for (Linux 6.15), or for a page.
	listBuffer = 256 << 10
	listPage   = 4096
	// Of an answer the attributes take the most: what the reader gets of one that was full is at least this part of it.
	listPart = 8
)

// Listings makes the way of a server's wishes to who has directories listed: the server, which must
// not touch its own mount, gives w to SendListings, and another process r to ReadListings.
func Listings() (r, w *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "listings"), os.NewFile(uintptr(fds[1]), "listings"), nil
}

// SendListings returns a function for ServeOptions.List that sends to w, of Listings. It never waits:
// what does not fit is dropped.
func SendListings(w *os.File) (func(dirs []string), error) {
	fd, err := rawFD(w)
	if err != nil {
		return nil, err
	}
	return func(dirs []string) {
		defer runtime.KeepAlive(w)
		for len(dirs) > 0 {
			size, n := 0, 0
			for n < len(dirs) && size+len(dirs[n])+1 <= maxListing {
				size += len(dirs[n]) + 1
				n++
			}
			if n == 0 {
				return // no path is so long
			}
			if unix.Send(fd, []byte(strings.Join(dirs[:n], "\x00")), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) != nil {
				return
			}
			dirs = dirs[n:]
		}
	}, nil
}

// ReadListings lists through a mount what the other end of r asks for (SendListings),
// until that is closed or r is. It waits for the server of the mount, so it must not run
// in the server's process; if that dies, it returns.
func ReadListings(mount *os.File, r io.Reader) error {
	root, err := rawFD(mount)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(mount)
	jobs := make(chan string)
	var wg sync.WaitGroup
	for range listers {
		wg.Go(func() {
			l := dirLister{buf: make([]byte, listBuffer)}
			for dir := range jobs {
				// Who wants it gets the error.
				_ = l.list(root, dir)
			}
		})
	}
	defer wg.Wait()
	defer close(jobs)
	msg := make([]byte, maxListing)
	for {
		n, err := r.Read(msg)
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read what to list: %w", err)
		}
		for dir := range strings.SplitSeq(string(msg[:n]), "\x00") {
			jobs <- dir
		}
	}
}

// dirLister lists directories.
type dirLister struct {
	buf  []byte
	wide bool // the kernel asks for more than a page
}

// list has the kernel learn the names in a directory. Below a mount that is read-write the names may change meanwhile.
func (l *dirLister) list(root int, dir string) error {
	fd, err := unix.Openat2(root, dir, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Getdents(fd, l.buf)
		if err != nil || !l.more(n) {
			return err
		}
	}
}

// more says whether anything may follow n bytes of entries. To ask costs a request, which most directories, being small, need not.
func (l *dirLister) more(n int) bool {
	l.wide = l.wide || n > listPage
	if l.wide {
		return n >= listBuffer/listPart
	}
	return n >= listPage/listPart
}
