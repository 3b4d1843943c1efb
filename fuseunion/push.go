package fuseunion

import (
	"encoding/binary"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// On a fresh mount each first touch of a file's bytes costs a round trip between
// the kernel and the server. FUSE_NOTIFY_STORE (Linux 2.6.36) puts bytes into the
// page cache without being asked, so that one request brings what will be wanted
// next: the small files that follow in the same directory, and the rest of the
// window of a large one. Nothing is pushed twice, and nothing before reads have
// shown a direction.
//
// Stores come from goroutines that answer no request: the kernel waits in the write
// for a page that a READ has locked, and that READ must be answered meanwhile.
const (
	smallFile  = 256 << 10 // what is pushed whole
	pushBudget = 1 << 20   // bytes of small files for one request
	pushNodes  = 512       // nodes that one request looks at
	nearNodes  = 64        // two reads this close, in node numbers, show a direction
	window     = 1 << 20   // of a large file, aligned
	// A READ of this size is read-ahead: programs read less at random, and the kernel
	// asks for 128 KiB ahead.
	streamRead = 64 << 10
	// Windows that a stream is ahead of at its beginning, and at most: as it goes on they double, so
	// that no more is pushed in vain than was read before.
	firstWindows = 2
	mostWindows  = 16
	// walkLasts is for how many files and directories a direction that has been seen
	// holds without being seen again: a walk comes into many small directories.
	walkLasts  = 32
	pushQueue  = 64
	pushers    = 2
	storeFixed = 40 // fuse_out_header and fuse_notify_store_out
)

// pusher pushes what reads show to be wanted soon.
type pusher struct {
	fd   int
	tree *Tree
	log  *slog.Logger
	jobs chan pushJob
	done chan struct{} // closed when nothing is to be pushed any more
	end  sync.Once
	wg   sync.WaitGroup

	known  []atomic.Uint32 // a bit for each node: read, or pushed whole
	credit atomic.Int32    // what is left of walkLasts

	mu    sync.Mutex
	large map[uint32]*pushed // files, by node
}

// pushed is what was pushed of a large file.
type pushed struct {
	windows []uint64 // a bit for each
	stream  uint64   // the window that a stream has come to
	ahead   uint64   // windows that it is given
}

// pushJob is a window of a large file, the small files from a node on, or those of a
// directory.
type pushJob struct {
	node   uint32
	window int64 // or one of:
}

const (
	siblings = -1
	children = -2
)

func newPusher(fd int, t *Tree, log *slog.Logger) *pusher {
	return &pusher{
		fd: fd, tree: t, log: log, jobs: make(chan pushJob, pushQueue), done: make(chan struct{}),
		known: make([]atomic.Uint32, t.m.hdr.nodes/32+1),
		large: make(map[uint32]*pushed),
	}
}

// start starts the goroutines that push.
func (p *pusher) start() {
	for range pushers {
		p.wg.Go(p.run)
	}
}

// stop ends them and waits until they have ended. Until then requests must be
// answered: a store may wait for a page that a READ has locked.
func (p *pusher) stop() {
	p.end.Do(func() { close(p.done) })
	p.wg.Wait()
}

func (p *pusher) run() {
	debug.SetPanicOnFault(true)
	buf := make([]byte, storeFixed+window)
	for {
		select {
		case <-p.done:
			return
		case j := <-p.jobs:
			p.do(j, buf)
		}
	}
}

func (p *pusher) do(j pushJob, buf []byte) {
	defer func() {
		if r := recover(); r != nil { // a page of the tree that cannot be read
			p.log.Warn("push file data", "panic", r)
		}
	}()
	switch j.window {
	case siblings:
		end := min(uint64(j.node)+pushNodes, uint64(p.tree.m.hdr.nodes))
		p.small(j.node, uint32(end), buf)
	case children:
		p.directory(j.node, buf)
	default:
		p.window(j.node, j.window, buf)
	}
}

// know marks a node and tells whether it was marked before.
func (p *pusher) know(i uint32) bool {
	bit := uint32(1) << (i % 32)
	return p.known[i/32].Or(bit)&bit != 0
}

func (p *pusher) knows(i uint32) bool { return p.known[i/32].Load()&(1<<(i%32)) != 0 }

// read is told of every READ. It takes a moment and never waits.
func (p *pusher) read(i uint32, n *node, off uint64, size int) {
	if n.size > smallFile {
		p.readLarge(i, n, off, size)
		return
	}
	if p.know(i) {
		return // of a second page; the direction was seen at the first
	}
	if !p.direction(i) {
		return
	}
	p.enqueue(pushJob{node: i + 1, window: siblings})
}

// direction tells whether the small files behind node i will be wanted: one
// near before it was, or a walk is going on.
func (p *pusher) direction(i uint32) bool {
	for d := uint32(1); d <= nearNodes && d <= i; d++ {
		if p.knows(i - d) {
			p.credit.Store(walkLasts)
			return true
		}
	}
	return p.walking()
}

// walking tells whether a walk is going on, which it is less and less likely the
// longer no direction was seen.
func (p *pusher) walking() bool { return p.credit.Load() > 0 && p.credit.Add(-1) >= 0 }

// enqueue gives a job to whoever has time; there may be too much to do already.
func (p *pusher) enqueue(j pushJob) bool {
	select {
	case p.jobs <- j:
		return true
	default:
		return false
	}
}

// listed is told that the kernel has asked for what follows the last entry of a
// directory: now it knows all of them. If a walk is going on, their files are next.
func (p *pusher) listed(dir uint32) {
	if p.walking() {
		p.enqueue(pushJob{node: dir, window: children})
	}
}

// directory pushes the small files of a directory.
func (p *pusher) directory(i uint32, buf []byte) {
	var n node
	if p.tree.m.node(i, &n) != nil {
		return
	}
	list, err := p.tree.m.dirents(&n)
	if err != nil || list.len() == 0 {
		return
	}
	// Numbers are given breadth first: but for hard links the children of a
	// directory lie side by side.
	first, last := p.tree.m.hdr.nodes, uint32(0)
	var d dirent
	for k := range list.len() {
		if _, err := list.get(k, &d); err != nil {
			return
		}
		if d.node > i {
			first, last = min(first, d.node), max(last, d.node)
		}
	}
	if first <= last {
		p.small(first, min(last, first+pushNodes)+1, buf)
	}
}

// small pushes small files of the nodes from i to end, as far as the kernel knows
// them: to the end of the directory, most likely. Where symbolic links lead cannot be
// pushed, though it is kept as a file's first page would be (EINVAL; Linux 6.18).
func (p *pusher) small(i, end uint32, buf []byte) {
	var n node
	for left := pushBudget; i < end && left > 0; i++ {
		if p.tree.m.node(i, &n) != nil {
			return
		}
		if n.mode&unix.S_IFMT != unix.S_IFREG || n.size == 0 || n.size > smallFile || p.know(i) {
			continue
		}
		if !p.store(i, &n, 0, int(n.size), buf) {
			p.known[i/32].And(^(uint32(1) << (i % 32)))
			return
		}
		left -= int(n.size)
	}
}

// readLarge has the window around a small read pushed, whose neighbours will be
// read as well, and the windows ahead of a large one, which is the kernel's
// read-ahead of who reads from front to back.
func (p *pusher) readLarge(i uint32, n *node, off uint64, size int) {
	if off >= n.size {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.large[i]
	if f == nil {
		f = &pushed{windows: make([]uint64, (n.size+window-1)/window/64+1)}
		p.large[i] = f
	}
	first, last := off/window, off/window
	if size >= streamRead {
		first, last = first+1, min(last+f.streamTo(last), (n.size-1)/window)
	}
	for w := first; w <= last; w++ {
		bit := uint64(1) << (w % 64)
		if f.windows[w/64]&bit == 0 && p.enqueue(pushJob{node: i, window: int64(w)}) {
			f.windows[w/64] |= bit
		}
	}
}

// streamTo notes that a stream has come to a window, and returns how many are to be
// pushed behind it.
func (f *pushed) streamTo(w uint64) uint64 {
	switch {
	case w < f.stream || w > f.stream+f.ahead+1 || f.ahead == 0: // another stream
		f.ahead = firstWindows
	case w > f.stream:
		f.ahead = min(2*f.ahead, mostWindows)
	}
	f.stream = w
	return f.ahead
}

func (p *pusher) window(i uint32, w int64, buf []byte) {
	var n node
	if p.tree.m.node(i, &n) != nil {
		return
	}
	from := uint64(w) * window
	p.store(i, &n, from, int(min(window, n.size-from)), buf)
}

// store puts bytes of a file into the page cache. It reports false if the kernel
// does not know the node.
func (p *pusher) store(i uint32, n *node, off uint64, size int, buf []byte) bool {
	data := buf[storeFixed : storeFixed+size]
	if got, err := p.tree.readAt(n, data, off); err != nil || got != size {
		return true // who reads it gets the error
	}
	const notifyStore = 4 // FUSE_NOTIFY_STORE
	le := binary.NativeEndian
	le.PutUint32(buf[0:], uint32(storeFixed+size))
	le.PutUint32(buf[4:], notifyStore)
	le.PutUint64(buf[8:], 0) // unique: 0 is a notification
	le.PutUint64(buf[16:], uint64(i)+1)
	le.PutUint64(buf[24:], off)
	le.PutUint32(buf[32:], uint32(size))
	le.PutUint32(buf[36:], 0)
	_, err := unix.Write(p.fd, buf[:storeFixed+size])
	return err == nil
}
