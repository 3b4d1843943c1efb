package emulation

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// owners keeps what the union has said of files' owners, so that it is asked once and
// not at each stat(2).
//
// Whatever changes a file's owner, or makes another file of its number, sets st_ctime
// to the time of that. So what was learned of a file whose st_ctime lay well in the
// past is true for as long as that stays what it was; of others nothing is kept, since
// the clock of file systems is coarse.
type owners struct {
	mu   sync.Mutex
	byID map[uint64]known
}

type known struct {
	changed unix.Timespec
	owner   fuseunion.Owner
}

const (
	// settled is how far in the past a change must lie.
	settled = time.Second
	// maxOwners bounds the memory, to about a megabyte.
	maxOwners = 16384
)

func (o *owners) get(ino uint64, changed unix.Timespec) (fuseunion.Owner, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k, ok := o.byID[ino]
	return k.owner, ok && k.changed == changed
}

// put keeps what is true at the time now, or was.
func (o *owners) put(ino uint64, changed unix.Timespec, owner fuseunion.Owner, now time.Time) {
	if now.Sub(time.Unix(changed.Unix())) < settled {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.byID == nil || len(o.byID) >= maxOwners {
		o.byID = map[uint64]known{}
	}
	o.byID[ino] = known{changed, owner}
}

// forget is for when an owner changes by this process's own doing.
func (o *owners) forget(ino uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.byID, ino)
}
