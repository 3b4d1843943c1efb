package userns

import (
	"errors"
	"fmt"
)

// Modes of a Request.
const (
	// ModeAuto makes the caller root inside; ids from 1 on are his subordinate
	// ids. Real root without subordinate ids keeps all ids as they are.
	ModeAuto = "auto"
	// ModeHost maps no more than it must: as ModeAuto for an ordinary user (who
	// cannot own ids of others), all ids as they are for real root.
	ModeHost = "host"
	// ModeKeepID gives the caller his own ids inside, or those of Request.UID and
	// GID; all other ids are subordinate ones.
	ModeKeepID = "keep-id"
	// ModeSingle makes the caller root inside and maps nothing else.
	ModeSingle = "single"
	// ModeMap takes the ranges of Request.UIDs and GIDs.
	ModeMap = "map"
)

// Request is the wish for a kind of map.
type Request struct {
	Mode string // one of the modes; "" is ModeAuto
	// UID and GID are the caller's ids inside for ModeKeepID; nil means his own.
	UID, GID *uint32
	// UIDs and GIDs are the ranges for ModeMap; Host is a number as the calling
	// process sees it. No GIDs: the same as UIDs, as podman has it.
	UIDs, GIDs []Range
}

// host is what of the machine decides a plan.
type host struct {
	subUIDs, subGIDs       []SubRange
	parentUIDs, parentGIDs []Range // /proc/self/uid_map: what exists for us is the Container side
	direct                 bool    // CAP_SETUID and CAP_SETGID: the maps are written without helpers
	helpers                error   // why newuidmap and newgidmap cannot be used; nil if they can
}

// Plan turns a request into the map that this user can have on this machine.
// Without subordinate ids, or where newuidmap is missing or powerless, ModeAuto,
// ModeHost and ModeKeepID come down to a single id and Map.Note says why;
// ModeMap is an error if any of its ranges cannot be had.
func Plan(req Request, id Identity) (Map, error) {
	var h host
	var err error
	if h.parentUIDs, err = readMap("/proc/self/uid_map"); err != nil {
		return Map{}, err
	}
	if h.parentGIDs, err = readMap("/proc/self/gid_map"); err != nil {
		return Map{}, err
	}
	if h.subUIDs, h.subGIDs, err = Subordinate(id); err != nil {
		return Map{}, fmt.Errorf("look up subordinate ids of %s: %w", id, err)
	}
	if h.direct = mayWriteDirectly(); !h.direct && req.Mode != ModeSingle {
		h.helpers = HelpersUsable()
	}
	return plan(req, id, h)
}

func plan(req Request, id Identity, h host) (Map, error) {
	uid, gid := uint32(id.UID), uint32(id.GID)
	inUID, inGID := uint32(0), uint32(0)
	switch req.Mode {
	case "", ModeAuto, ModeHost:
	case ModeKeepID:
		inUID, inGID = uid, gid
		if req.UID != nil {
			inUID = *req.UID
		}
		if req.GID != nil {
			inGID = *req.GID
		}
	case ModeSingle:
		return Map{UIDs: one(0, uid), GIDs: one(0, gid)}, nil
	case ModeMap:
		return planExplicit(req, id, h)
	default:
		return Map{}, fmt.Errorf("plan the id map: unknown mode %q", req.Mode)
	}
	uids, gids := h.available(id)
	m := Map{UIDs: one(inUID, uid), GIDs: one(inGID, gid)}
	none := len(uids) == 0 || len(gids) == 0
	switch {
	case h.direct && inUID == uid && inGID == gid && (none || (req.Mode == ModeHost)):
		m.UIDs, m.GIDs = identity(h.parentUIDs), identity(h.parentGIDs)
	case none && h.direct && h.nested():
		// A container's processes may share out what the container was given.
		all := []SubRange{{0, 1<<32 - 1}}
		m.UIDs = around(inUID, uid, clamp(subtract(all, SubRange{uid, 1}), h.parentUIDs))
		m.GIDs = around(inGID, gid, clamp(subtract(all, SubRange{gid, 1}), h.parentGIDs))
	case none:
		m.Note = noRanges(id, h)
	case !h.direct && h.helpers != nil:
		m.Note = "single id: " + h.helpers.Error()
	default:
		m.UIDs, m.GIDs = around(inUID, uid, uids), around(inGID, gid, gids)
	}
	return m, errors.Join(validate("uid", m.UIDs), validate("gid", m.GIDs))
}

// available returns the granted ids that exist in this user namespace, without
// the user's own.
func (h host) available(id Identity) (uids, gids []SubRange) {
	return clamp(subtract(h.subUIDs, SubRange{uint32(id.UID), 1}), h.parentUIDs),
		clamp(subtract(h.subGIDs, SubRange{uint32(id.GID), 1}), h.parentGIDs)
}

// nested says whether this process is in another user namespace than the first.
func (h host) nested() bool {
	return len(h.parentUIDs) != 1 || h.parentUIDs[0] != Range{0, 0, 1<<32 - 1}
}

func noRanges(id Identity, h host) string {
	kind := "uids"
	if len(h.subUIDs) > 0 {
		kind = "gids"
		if len(h.subGIDs) > 0 {
			return fmt.Sprintf("single id: the subordinate ids of %s do not exist in this user namespace", id)
		}
	}
	return fmt.Sprintf("single id: %s has no subordinate %s", id, kind)
}

func one(container, host uint32) []Range { return []Range{{container, host, 1}} }

// identity maps all ids of the parent to themselves, one range for each of the
// parent's.
func identity(parent []Range) []Range {
	var rs []Range
	for _, p := range parent {
		rs = append(rs, Range{p.Container, p.Container, p.Size})
	}
	return rs
}

// around maps inside to own and fills the numbers below and above it with the
// granted ids, in ascending order of the numbers inside.
func around(inside, own uint32, granted []SubRange) []Range {
	var rs []Range
	next, placed := uint64(0), false
	for _, g := range granted {
		for g.Size > 0 {
			if next == uint64(inside) && !placed {
				rs, next, placed = append(rs, Range{inside, own, 1}), next+1, true
			}
			n := uint64(g.Size)
			if !placed {
				n = min(n, uint64(inside)-next)
			}
			n = min(n, 1<<32-1-next)
			if n == 0 {
				return rs
			}
			rs = append(rs, Range{uint32(next), g.Start, uint32(n)})
			next, g = next+n, SubRange{g.Start + uint32(n), g.Size - uint32(n)}
		}
	}
	if !placed {
		rs = append(rs, Range{inside, own, 1})
	}
	return rs
}

func planExplicit(req Request, id Identity, h host) (Map, error) {
	m := Map{UIDs: req.UIDs, GIDs: req.GIDs}
	if len(m.GIDs) == 0 {
		m.GIDs = m.UIDs
	}
	if err := errors.Join(validate("uid", m.UIDs), validate("gid", m.GIDs)); err != nil {
		return Map{}, fmt.Errorf("plan the id map: %w", err)
	}
	err := granted("uid", m.UIDs, id.Name, uint32(id.UID), h.subUIDs, h.parentUIDs, h)
	if err == nil {
		err = granted("gid", m.GIDs, id.Name, uint32(id.GID), h.subGIDs, h.parentGIDs, h)
	}
	return m, err
}

// granted checks that every range may be mapped: all of it exists in the parent,
// and it is the caller's own id, or in one of his grants, or he has the
// capability.
func granted(kind string, rs []Range, name string, own uint32, sub []SubRange, parent []Range, h host) error {
	for _, r := range rs {
		whole := []SubRange{{r.Host, r.Size}}
		op := fmt.Sprintf("map %ss %d to %d", kind, r.Host, r.Host+r.Size-1)
		if pieces := clamp(whole, parent); len(pieces) != 1 || pieces[0].Size != r.Size {
			return &Error{Op: op, Err: errors.New("they are not one range of this user namespace's own map")}
		}
		if h.direct || (isSingle(rs) && r.Host == own) {
			continue
		}
		if h.helpers != nil {
			return &Error{Op: op, Err: h.helpers, Cure: cureOf(h.helpers)}
		}
		ok := r.Size == 1 && r.Host == own
		for _, s := range sub {
			ok = ok || (r.Host >= s.Start && uint64(r.Host)+uint64(r.Size) <= uint64(s.Start)+uint64(s.Size))
		}
		if !ok {
			return &Error{
				Op: op, Err: errors.New("they are not among the user's subordinate ids"),
				Cure: fmt.Sprintf("as root: usermod --add-sub%ss %d-%d %s", kind, r.Host, r.Host+r.Size-1, name),
			}
		}
	}
	return nil
}
