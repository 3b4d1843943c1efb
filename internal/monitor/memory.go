package monitor

import (
	"runtime/debug"
	"sync"
	"time"
)

// A monitor does little for most of its life, and there may be many. What its
// start and what it was asked for since took of memory, it gives back.

const (
	// idleTime is how long nothing must have happened for that.
	idleTime = 2 * time.Second
	// gcPercent is how much the heap may grow between collections, which cost next
	// to nothing at its size.
	gcPercent = 25
)

type thrift struct {
	mu    sync.Mutex
	timer *time.Timer
}

// busy puts the next collection off.
func (t *thrift) busy() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer == nil {
		t.timer = time.AfterFunc(idleTime, debug.FreeOSMemory)
		return
	}
	t.timer.Reset(idleTime)
}
