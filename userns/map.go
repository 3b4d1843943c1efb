package userns

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Range says that Size ids from Container within the namespace are the ids from
// Host on in its parent.
type Range struct{ Container, Host, Size uint32 }

// Map is the pair of id maps of a user namespace.
type Map struct {
	UIDs, GIDs []Range
	// Outer says that there is no namespace of its own: Host is the same as Container.
	Outer bool `json:",omitempty"`
	// Note says in words why the map has a single id though more were wished
	// for; "" otherwise. It is no part of the map's identity.
	Note string
}

// Contains says whether uid exists within the namespace.
func (m Map) Contains(uid uint32) bool { _, ok := toHost(m.UIDs, uid); return ok }

// ContainsGID says whether gid exists within the namespace.
func (m Map) ContainsGID(gid uint32) bool { _, ok := toHost(m.GIDs, gid); return ok }

// ToHost translates a uid within the namespace to the parent's.
func (m Map) ToHost(uid uint32) (uint32, bool) { return toHost(m.UIDs, uid) }

// ToHostGID translates a gid within the namespace to the parent's.
func (m Map) ToHostGID(gid uint32) (uint32, bool) { return toHost(m.GIDs, gid) }

// FromHost translates a uid of the parent to the one within the namespace.
func (m Map) FromHost(uid uint32) (uint32, bool) { return fromHost(m.UIDs, uid) }

// FromHostGID translates a gid of the parent to the one within the namespace.
func (m Map) FromHostGID(gid uint32) (uint32, bool) { return fromHost(m.GIDs, gid) }

// Single says whether the namespace has one uid and one gid.
func (m Map) Single() bool { return isSingle(m.UIDs) && isSingle(m.GIDs) }

// Key returns 16 hexadecimal digits that are equal for equal maps.
func (m Map) Key() string {
	sum := sha256.Sum256([]byte(m.String()))
	return hex.EncodeToString(sum[:8])
}

// String returns the map as "uid 0:1000:1,1:100000:65536 gid 0:1000:1".
func (m Map) String() string {
	if m.Outer {
		return "none: no user namespace"
	}
	return "uid " + join(m.UIDs, ":", ",") + " gid " + join(m.GIDs, ":", ",")
}

// Require returns an error with a hint if uid or gid has no place in the map.
func (m Map) Require(uid, gid uint32) error {
	what, id := "uid", uid
	if m.Contains(uid) {
		if m.ContainsGID(gid) {
			return nil
		}
		what, id = "gid", gid
	}
	why := ""
	if m.Note != "" {
		why = " (" + m.Note + ")"
	}
	return &Error{
		Op: fmt.Sprintf("use %s %d in the container", what, id), Err: errors.New("it is not in the id map" + why),
		Cure: "give the user subordinate ids: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, and install the package uidmap",
	}
}

func isSingle(rs []Range) bool { return len(rs) == 1 && rs[0].Size == 1 }

func toHost(rs []Range, id uint32) (uint32, bool) {
	for _, r := range rs {
		if id >= r.Container && id-r.Container < r.Size {
			return r.Host + (id - r.Container), true
		}
	}
	return 0, false
}

func fromHost(rs []Range, id uint32) (uint32, bool) {
	for _, r := range rs {
		if id >= r.Host && id-r.Host < r.Size {
			return r.Container + (id - r.Host), true
		}
	}
	return 0, false
}

func join(rs []Range, field, end string) string {
	var b strings.Builder
	for i, r := range rs {
		if i > 0 {
			b.WriteString(end)
		}
		fmt.Fprintf(&b, "%d%s%d%s%d", r.Container, field, r.Host, field, r.Size)
	}
	return b.String()
}

// maxExtents is UID_GID_MAP_MAX_EXTENTS (Linux 4.15; 5 before).
const maxExtents = 340

// validate checks what the kernel would refuse with a bare EINVAL.
func validate(kind string, rs []Range) error {
	if len(rs) == 0 {
		return fmt.Errorf("%s map is empty", kind)
	}
	if len(rs) > maxExtents {
		return fmt.Errorf("%s map has %d ranges, the kernel takes %d", kind, len(rs), maxExtents)
	}
	overlap := func(a, b, an, bn uint32) bool {
		return uint64(a) < uint64(b)+uint64(bn) && uint64(b) < uint64(a)+uint64(an)
	}
	for i, r := range rs {
		if r.Size == 0 || uint64(r.Container)+uint64(r.Size) > 1<<32-1 || uint64(r.Host)+uint64(r.Size) > 1<<32-1 {
			return fmt.Errorf("%s range %d:%d:%d is empty or beyond 32 bits", kind, r.Container, r.Host, r.Size)
		}
		for _, q := range rs[:i] {
			if overlap(r.Container, q.Container, r.Size, q.Size) || overlap(r.Host, q.Host, r.Size, q.Size) {
				return fmt.Errorf("%s ranges %d:%d:%d and %d:%d:%d overlap", kind,
					q.Container, q.Host, q.Size, r.Container, r.Host, r.Size)
			}
		}
	}
	return nil
}

// readMap reads a file such as /proc/self/uid_map.
func readMap(path string) ([]Range, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rs []Range
	for line := range strings.Lines(string(data)) {
		var n [3]uint64
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("parse %s: %q", path, line)
		}
		for i := range n {
			if n[i], err = strconv.ParseUint(f[i], 10, 32); err != nil {
				return nil, fmt.Errorf("parse %s: %w", path, err)
			}
		}
		rs = append(rs, Range{uint32(n[0]), uint32(n[1]), uint32(n[2])})
	}
	return rs, nil
}
