package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/slirp"
)

// At its end a container waits for others to take what it has sent: until they take nothing for drainStalled, and drainMost altogether.
const (
	drainStalled = 3 * time.Second
	drainMost    = time.Minute
	drainLook    = 5 * time.Millisecond
	drainAlone   = 100 * time.Millisecond // then it asks whether there is anybody else to wait for
)

// drain waits until what the container has sent is out of it, as the kernel of a host does with what is left by processes that have
// ended. It does not wait where the user does not: after a SIGKILL, or when he asks again.
func (c *container) drain(ws unix.WaitStatus) {
	switch {
	case ws.Signaled() && ws.Signal() == unix.SIGKILL:
	case c.tun != nil:
		c.drainHelper()
	case c.bridges.client != nil:
		c.drainBridges()
	}
}

// drainHelper waits until the network helper has passed on all.
func (c *container) drainHelper() {
	most, alone := time.NewTimer(drainMost), time.NewTimer(drainAlone)
	defer most.Stop()
	defer alone.Stop()
	told := false
	for stops := c.stops; c.stops == stops; {
		if c.helper == nil {
			select {
			case e := <-c.events:
				if !c.whileDraining(e) {
					return
				}
			default:
				return // nothing was ever sent
			}
			continue
		}
		if c.attached && !told {
			told = true
			if c.helper.conn.Send(KindDrain, nil) != nil {
				return
			}
		}
		select {
		case <-c.helper.done:
			return
		case <-most.C:
			return
		case <-alone.C:
			// What the helper still carries may be theirs; it ends with this container in any case.
			if c.sharesNetwork() {
				return
			}
		case e := <-c.events:
			if !c.whileDraining(e) {
				return
			}
		}
	}
}

// sharesNetwork tells whether there are processes in the container's network namespace: those of containers that joined it.
func (c *container) sharesNetwork() bool {
	ns, err := slirp.LinkNamespace(c.tun)
	if err != nil {
		return false
	}
	defer ns.Close()
	own, err := ns.Stat()
	if err != nil {
		return false
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(processes, func(theirs string) bool {
		info, err := os.Stat(theirs)
		return err == nil && os.SameFile(own, info) // others' cannot be looked at
	})
}

// drainBridges waits until the container's kernel has got rid of all; the process of the bridges, which lives on, passes it on.
func (c *container) drainBridges() {
	tables, err := socketTables(c.bridges.netns)
	defer func() {
		for _, f := range tables {
			f.Close()
		}
	}()
	if err != nil {
		return // it ends at once, as it would without this
	}
	look := time.NewTicker(drainLook)
	defer look.Stop()
	begin := time.Now()
	since, before := begin, int64(-1)
	for stops := c.stops; c.stops == stops; {
		left, err := unsent(tables)
		now := time.Now()
		if left != before {
			before, since = left, now
		}
		if err != nil || left == 0 || now.Sub(since) > drainStalled || now.Sub(begin) > drainMost {
			return
		}
		select {
		case <-look.C:
		case e := <-c.events:
			if !c.whileDraining(e) {
				return
			}
		}
	}
}

// whileDraining handles an event; false ends the wait.
func (c *container) whileDraining(e event) bool {
	switch {
	case e.do != nil:
		e.answer <- e.do()
	case e.from == fromCommand && e.kind() == "" && !c.Detach:
		return false
	case e.from == fromCommand:
		c.obey(e)
	case e.from == fromJob:
		return false
	case e.from == fromTUN && (e.prepared != nil || slirp.WorthDelivering(c.Slirp, e.frame)):
		c.fromTUN(e)
	case e.from == fromBridges && e.joined == nil:
		return false // their process was killed
	}
	return true
}

// socketTables opens a network namespace's lists of TCP sockets.
func socketTables(netns *os.File) ([]*os.File, error) {
	type opened struct {
		files []*os.File
		err   error
	}
	done := make(chan opened)
	go func() {
		// Never unlocked: the thread, in another network namespace now, ends with the goroutine.
		runtime.LockOSThread()
		var o opened
		if o.err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); o.err == nil {
			for _, name := range []string{"tcp", "tcp6"} {
				f, err := os.Open("/proc/thread-self/net/" + name)
				if errors.Is(err, os.ErrNotExist) {
					continue // no IPv6
				}
				if err != nil {
					o.err = err
					break
				}
				o.files = append(o.files, f)
			}
		}
		done <- o
	}()
	o := <-done
	return o.files, o.err
}

// unsent is how many bytes wait in sockets that nobody holds any more, an end of data counting as one.
func unsent(tables []*os.File) (bytes int64, err error) {
	for _, f := range tables {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		data, err := io.ReadAll(f)
		if err != nil {
			return 0, err
		}
		n, err := parseUnsent(string(data))
		if err != nil {
			return 0, err
		}
		bytes += n
	}
	return bytes, nil
}

// parseUnsent reads the format of /proc/net/tcp (proc_net_tcp.rst of the kernel's documentation).
func parseUnsent(table string) (bytes int64, err error) {
	// The numbers of enum tcp_states for sockets that were closed and whose FIN is not acknowledged.
	const finWait1, lastAck, closing = "04", "09", "0B"
	lines := strings.Split(table, "\n")
	for _, line := range lines[min(1, len(lines)):] {
		f := strings.Fields(line)
		if len(f) < 5 || f[3] != finWait1 && f[3] != lastAck && f[3] != closing {
			continue
		}
		tx, _, _ := strings.Cut(f[4], ":")
		n, err := strconv.ParseInt(tx, 16, 64)
		if err != nil {
			return 0, fmt.Errorf("queue of a socket: %w", err)
		}
		bytes += max(n, 1)
	}
	return bytes, nil
}
