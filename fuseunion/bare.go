package fuseunion

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Who only wants names, as find(1) does, has no use for the attributes that a READDIRPLUS brings of
// each: the kernel makes an inode of every file for them, which takes a third of such a walk's time and a kilobyte each. An
// answer may leave them out (node id 0), and does so of all but directories where a walk goes on that has looked nothing up in
// those that were listed so. The first LOOKUP of a file in one of these ends that: the walk is given attributes for a number of
// directories, until it is tried again, and what was listed without them is listed anew, by ahead.
const (
	bareAfter = 8    // directories that are listed, each near the one before and behind it, before one is tried
	bareTry   = 64   // names that one may have that is tried
	mostPause = 1024 // directories between two that are tried; it doubles from bareAfter
)

// bareWalk is somebody who lists directories.
type bareWalk struct {
	at      uint32 // the place that was listed last
	pause   uint32 // directories that get attributes before one is tried
	left    uint32 // of these
	tried   bool   // one was listed without attributes, and nothing has been looked up in it so far
	trusted bool   // the walk came to the next one without looking anything up
	where   uint32 // the place in which something was looked up last
	here    int    // and how often
	used    uint64 // when it was seen
}

// bare is told of each READDIRPLUS of a directory from an offset on, and says whether it
// goes without the attributes of what is no directory.
func (a *ahead) bare(dir uint32, off uint64) bool {
	o := a.order.Load()
	if o == nil {
		a.startOrder()
		return false
	}
	place, ok := o.place[dir]
	if !ok {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case has(a.asked, place): // somebody looks things up in it, or is about to
		return false
	case off > 0 || has(a.bared, place):
		return has(a.bared, place)
	}
	if a.lister(place).lists(place, o.dirs[place].names) {
		set(a.bared, place)
		return true
	}
	return false
}

// lister returns the walk that comes to a place by listing it, which may be a new one.
func (a *ahead) lister(place uint32) *bareWalk {
	a.clock++
	oldest := &a.listers[0]
	for i := range a.listers {
		w := &a.listers[i]
		if w.used != 0 && place >= w.at && place-w.at <= nearDirs {
			w.used = a.clock
			return w
		}
		if w.used < oldest.used {
			oldest = w
		}
	}
	*oldest = bareWalk{at: place, pause: bareAfter, left: bareAfter, used: a.clock}
	return oldest
}

// lists notes that the walk lists a place with so many names, and says whether it goes without attributes.
func (w *bareWalk) lists(place, names uint32) bool {
	w.at = place
	if w.tried {
		w.tried, w.trusted = false, true
	}
	switch {
	case w.trusted:
		return true
	case w.left > 0:
		w.left--
		return false
	case names > bareTry:
		return false
	}
	w.tried = true
	return true
}

// missed is told that something was looked up in a place. near says that the kernel was given no attributes of the files
// there by a walk that lists directories, and is not far; again, that it should be listed anew.
func (a *ahead) missed(o *dirOrder, place, found uint32) (near, again bool) {
	if !has(a.bared, place) {
		return false, false
	}
	_, dir := o.place[found]
	file := found != noNode && !dir
	for i := range a.listers {
		w := &a.listers[i]
		if w.used == 0 || place > w.at || w.at-place > nearDirs {
			continue
		}
		near = true
		again = file && w.missed(place) || again
	}
	return near, again
}

func (w *bareWalk) missed(place uint32) (again bool) {
	if w.tried || w.trusted {
		w.tried, w.trusted = false, false
		w.pause = min(2*w.pause, mostPause)
		w.left = w.pause
	}
	if w.where != place {
		w.where, w.here = place, 0
	}
	w.here++
	return w.here == lookupsIn
}

// ask has directories listed. The kernel is told first to drop what it keeps of those that were listed without
// attributes. Who tells it waits for the pages that it is kept in, which somebody may be reading, so no loop does.
func (a *ahead) ask(l listings) {
	if len(l.stale) == 0 {
		a.list(l.dirs)
		return
	}
	select {
	case a.stale <- l:
	default: // there is too much to do already; it is only that LOOKUPs go on
	}
}

// drop does what ask puts off.
func (a *ahead) drop() {
	for {
		select {
		case <-a.done:
			return
		case l := <-a.stale:
			for _, node := range l.stale {
				a.forgetNames(node)
			}
			a.mu.Lock()
			a.list(l.dirs)
			a.mu.Unlock()
		}
	}
}

// forgetNames has the kernel forget the list of a directory. It may not know the directory any more.
func (a *ahead) forgetNames(node uint32) {
	const (
		notifyInvalInode = 2       // FUSE_NOTIFY_INVAL_INODE
		size             = 16 + 24 // fuse_out_header and fuse_notify_inval_inode_out, whose offset and length of 0 are all of it
	)
	var msg [size]byte
	le := binary.NativeEndian
	le.PutUint32(msg[0:], size)
	le.PutUint32(msg[4:], notifyInvalInode)
	le.PutUint64(msg[16:], uint64(node)+1)
	_, _ = unix.Write(a.fd, msg[:])
}
