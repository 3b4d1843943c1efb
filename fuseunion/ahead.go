package fuseunion

import (
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Names can not be pushed as bytes can (push.go): the kernel takes them from the answer
// to a question alone, and a LOOKUP asks for one. So when requests show that somebody
// walks through the tree, the server has the directories that come next listed by a
// process that may touch the mount (ServeOptions.List): one READDIRPLUS then brings all
// names of a directory, with their attributes, before they are asked for.
//
// Directories are asked for in the order of a walk: each before what is in it, and that
// in the order of the names. How many lie ahead doubles as long as the walk goes on, so
// that no more is listed in vain than was walked through before.
const (
	nearDirs   = 32   // directories this close, in the order of a walk, show one
	firstAhead = 4    // directories that a walk is ahead of at its beginning
	mostAhead  = 128  // and at most
	walkSteps  = 2    // steps forward that make a walk
	manyNames  = 1024 // a directory with more is listed only if it is a walk that comes to it
	lookupsIn  = 3    // LOOKUPs in one directory after which it is listed
	walks      = 4    // that are told apart
	staleQueue = 64   // steps of walks whose directories wait to be listed anew
)

// ahead sees walks in the requests of a mount.
type ahead struct {
	fd   int // of the device
	tree *Tree
	list func([]string)
	log  *slog.Logger

	order   atomic.Pointer[dirOrder]
	started atomic.Bool // making order
	stale   chan listings
	done    chan struct{} // closed when nothing is to be listed any more
	end     sync.Once
	making  sync.WaitGroup
	listing sync.WaitGroup

	mu      sync.Mutex
	asked   []uint64 // a bit for each place in order: it was asked for
	bared   []uint64 // likewise: it was listed without attributes
	walks   [walks]walkState
	listers [walks]bareWalk
	clock   uint64
}

// walkState is somebody who walks.
type walkState struct {
	at, end uint32 // places in order: where it is, and behind what was asked for
	ahead   uint32
	steps   int    // forward
	here    int    // LOOKUPs in the directory at
	used    uint64 // when it was seen
}

// dirOrder is the directories of a tree in the order of a walk.
type dirOrder struct {
	dirs  []orderedDir
	place map[uint32]uint32 // of a node, in dirs
}

type orderedDir struct {
	node   uint32
	parent uint32 // place
	name   string // in the map
	names  uint32 // how many are in it
}

func newAhead(fd int, t *Tree, list func([]string), log *slog.Logger) *ahead {
	return &ahead{fd: fd, tree: t, list: list, log: log, stale: make(chan listings, staleQueue), done: make(chan struct{})}
}

// start starts the goroutine that has directories listed anew.
func (a *ahead) start() { a.listing.Go(a.drop) }

// lookup is told of each LOOKUP in a directory, and what it found: noNode for nothing. It never waits for
// another. (Who lists directories gets all names anyhow; to list them for him as well takes more than it saves.)
func (a *ahead) lookup(dir, found uint32) {
	o := a.order.Load()
	if o == nil {
		a.startOrder()
		return
	}
	place, ok := o.place[dir]
	if !ok || !a.mu.TryLock() {
		return
	}
	defer a.mu.Unlock()
	var l listings
	if near, again := a.missed(o, place, found); near {
		// Who lists directories needs nobody to do it for him.
		if again {
			a.add(&l, o, place)
		}
	} else {
		w := a.walk(place)
		from, to := w.step(place, uint32(len(o.dirs)))
		if w.wants(o.dirs[place].names) {
			a.add(&l, o, place)
		}
		for p := from; p < to; p++ {
			a.add(&l, o, p)
		}
	}
	if len(l.dirs) > 0 {
		a.ask(l)
	}
}

// listings are directories that are to be listed.
type listings struct {
	dirs  []string
	stale []uint32 // the nodes of those that were listed without attributes
}

// add adds a directory that was not asked for so far.
func (a *ahead) add(l *listings, o *dirOrder, place uint32) {
	if has(a.asked, place) {
		return
	}
	set(a.asked, place)
	l.dirs = append(l.dirs, o.path(place))
	if has(a.bared, place) {
		l.stale = append(l.stale, o.dirs[place].node)
	}
}

// startOrder has the order made, once.
func (a *ahead) startOrder() {
	if !a.started.Swap(true) {
		a.making.Go(a.makeOrder)
	}
}

// walk returns the walk that a place belongs to, which may be a new one.
func (a *ahead) walk(place uint32) *walkState {
	a.clock++
	oldest := &a.walks[0]
	for i := range a.walks {
		w := &a.walks[i]
		if w.used != 0 && place+nearDirs >= w.at && place <= max(w.at+nearDirs, w.end) {
			w.used = a.clock
			return w
		}
		if w.used < oldest.used {
			oldest = w
		}
	}
	*oldest = walkState{at: place, end: place, used: a.clock}
	return oldest
}

// step notes that the walk is at a place, and returns the places that are to be asked for.
func (w *walkState) step(place, all uint32) (from, to uint32) {
	switch {
	case place > w.at:
		w.at, w.here = place, 1
		w.steps++
	case place == w.at:
		w.here++
	}
	if w.steps < walkSteps || place+w.ahead/2 < w.end {
		return 0, 0
	}
	w.ahead = min(max(2*w.ahead, firstAhead), mostAhead)
	from, to = max(place+1, w.end), min(place+1+w.ahead, all)
	w.end = max(to, w.end)
	return from, to
}

// wants says whether it pays to list a directory in which something was looked up.
func (w *walkState) wants(names uint32) bool {
	return w.steps >= walkSteps || w.here >= lookupsIn && names <= manyNames
}

func has(bits []uint64, i uint32) bool { return bits[i/64]&(1<<(i%64)) != 0 }
func set(bits []uint64, i uint32)      { bits[i/64] |= 1 << (i % 64) }

// makeOrder finds the directories: a few milliseconds for 100,000 nodes, when somebody
// first looks at something.
func (a *ahead) makeOrder() {
	debug.SetPanicOnFault(true)
	defer func() {
		if r := recover(); r != nil { // a page of the tree that cannot be read
			a.log.Warn("find directories", "panic", r)
		}
	}()
	o, err := a.tree.dirOrder()
	if err != nil {
		return // who walks there gets the error
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked, a.bared = make([]uint64, len(o.dirs)/64+1), make([]uint64, len(o.dirs)/64+1)
	a.order.Store(o)
}

// made waits until nothing reads the tree, when no request comes any more.
func (a *ahead) made() {
	if a != nil {
		a.making.Wait()
	}
}

// stop waits until it writes to the device no more. Until then requests must be answered.
func (a *ahead) stop() {
	a.end.Do(func() { close(a.done) })
	a.listing.Wait()
}

// dirOrder returns the directories of the tree in the order of a walk.
func (t *Tree) dirOrder() (*dirOrder, error) {
	o := &dirOrder{place: map[uint32]uint32{}}
	var root node
	if err := t.m.node(0, &root); err != nil {
		return nil, err
	}
	o.add(orderedDir{})
	stack := []orderedDir{{}}
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		place, ok := o.place[d.node]
		if d.node != 0 {
			if ok {
				return nil, errRecord // a directory has one name
			}
			place = o.add(d)
		}
		below, err := t.subdirs(d.node, place)
		if err != nil {
			return nil, err
		}
		o.dirs[place].names = below.names
		stack = append(stack, below.dirs...)
	}
	return o, nil
}

func (o *dirOrder) add(d orderedDir) (place uint32) {
	place = uint32(len(o.dirs))
	o.dirs = append(o.dirs, d)
	o.place[d.node] = place
	return place
}

type subdirs struct {
	names uint32
	dirs  []orderedDir // the last one first
}

func (t *Tree) subdirs(dir, place uint32) (s subdirs, err error) {
	var n node
	if err := t.m.node(dir, &n); err != nil {
		return s, err
	}
	list, err := t.m.dirents(&n)
	if err != nil {
		return s, err
	}
	s.names = uint32(list.len())
	var d dirent
	for k := list.len() - 1; k >= 0; k-- {
		d.decode(list.b[k*direntSize:])
		if d.typ != unix.DT_DIR {
			continue
		}
		name, err := list.get(k, &d)
		if err != nil {
			return s, err
		}
		s.dirs = append(s.dirs, orderedDir{node: d.node, parent: place, name: name})
	}
	return s, nil
}

// path returns the path of a directory from the root, which is ".".
func (o *dirOrder) path(place uint32) string {
	var names []string
	for ; place != 0; place = o.dirs[place].parent {
		names = append(names, o.dirs[place].name)
	}
	if len(names) == 0 {
		return "."
	}
	size := len(names) - 1
	for _, n := range names {
		size += len(n)
	}
	var b strings.Builder
	b.Grow(size)
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteString(names[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return b.String()
}
