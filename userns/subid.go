package userns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// SubRange is a run of Size ids from Start that a user was granted.
type SubRange struct{ Start, Size uint32 }

// sources are the files and programs that grants are read from.
type sources struct {
	subuid, subgid, nsswitch string
	getsubids                func(args ...string) ([]byte, error)
}

func hostSources() sources {
	return sources{
		subuid: "/etc/subuid", subgid: "/etc/subgid", nsswitch: "/etc/nsswitch.conf",
		getsubids: func(args ...string) ([]byte, error) {
			return exec.Command("getsubids", args...).Output()
		},
	}
}

// Subordinate returns the subordinate ids granted to id, in the order of the
// grants, without overlaps. No grant at all is not an error. The source is
// /etc/subuid and /etc/subgid, entries by login name and by numeric uid, unless
// nsswitch.conf names another source for subid: newuidmap then heeds that source
// alone (shadow 4.9), so it is asked through getsubids(1).
func Subordinate(id Identity) (uids, gids []SubRange, err error) {
	return hostSources().lookup(id)
}

func (s sources) lookup(id Identity) (uids, gids []SubRange, err error) {
	if module := s.nssModule(); module != "" && id.Name != "" {
		uids, err = s.ask(id.Name)
		if err == nil {
			gids, err = s.ask("-g", id.Name)
		}
		if err == nil || !errors.Is(err, exec.ErrNotFound) {
			return uids, gids, err
		}
		// Without getsubids the files are all that can be read.
	}
	uids, uerr := readSubIDs(s.subuid, id)
	gids, gerr := readSubIDs(s.subgid, id)
	return uids, gids, errors.Join(uerr, gerr)
}

// nssModule returns the source of subid in nsswitch.conf if it is not the files.
func (s sources) nssModule() string {
	data, err := os.ReadFile(s.nsswitch)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "subid:")
		if f := strings.Fields(rest); ok && len(f) > 0 && f[0] != "files" {
			return f[0]
		}
	}
	return ""
}

func (s sources) ask(args ...string) ([]SubRange, error) {
	out, err := s.getsubids(args...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		// getsubids ends with 1 for a user without a grant.
		if exit.ExitCode() == 1 {
			return nil, nil
		}
		return nil, fmt.Errorf("getsubids %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return nil, fmt.Errorf("getsubids %s: %w", strings.Join(args, " "), err)
	}
	return parseGetsubids(string(out))
}

// parseGetsubids reads lines such as "0: alice 100000 65536".
func parseGetsubids(out string) ([]SubRange, error) {
	var all []SubRange
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 4 {
			return nil, fmt.Errorf("parse getsubids output %q", strings.TrimSpace(line))
		}
		r, err := parseRange(f[2], f[3])
		if err != nil {
			return nil, fmt.Errorf("parse getsubids output %q: %w", strings.TrimSpace(line), err)
		}
		all = appendDisjoint(all, r)
	}
	return all, nil
}

func readSubIDs(path string, id Identity) ([]SubRange, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ranges, err := parseSubIDs(f, id)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return ranges, nil
}

// parseSubIDs reads a file in the format of subuid(5). Lines of others are not
// judged, as newuidmap does not either; a bad line of this user is an error.
func parseSubIDs(r io.Reader, id Identity) ([]SubRange, error) {
	var all []SubRange
	uid := strconv.Itoa(id.UID)
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		f := strings.Split(line, ":")
		if f[0] == "" || f[0][0] == '#' || (f[0] != id.Name && f[0] != uid) {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("line %d: %q is not owner:start:count", n, line)
		}
		r, err := parseRange(f[1], f[2])
		if err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", n, line, err)
		}
		all = appendDisjoint(all, r)
	}
	return all, sc.Err()
}

func parseRange(start, size string) (SubRange, error) {
	s, err := strconv.ParseUint(start, 10, 32)
	if err != nil {
		return SubRange{}, err
	}
	n, err := strconv.ParseUint(size, 10, 32)
	if err != nil {
		return SubRange{}, err
	}
	// 2^32-1 is (uid_t)-1, "no id": the kernel refuses to map it.
	if s+n > 1<<32-1 {
		return SubRange{}, fmt.Errorf("ids %d to %d are beyond 32 bits", s, s+n-1)
	}
	return SubRange{uint32(s), uint32(n)}, nil
}

// appendDisjoint appends the parts of r that are not in all yet. One grant given
// twice (by name and by uid) is common, and the kernel refuses a map that
// uses an id twice.
func appendDisjoint(all []SubRange, r SubRange) []SubRange {
	if r.Size == 0 {
		return all
	}
	parts := []SubRange{r}
	for _, a := range all {
		parts = subtract(parts, a)
	}
	return append(all, parts...)
}

// subtract returns the parts of ranges outside of cut.
func subtract(ranges []SubRange, cut SubRange) []SubRange {
	if cut.Size == 0 {
		return ranges
	}
	var out []SubRange
	for _, r := range ranges {
		rEnd, cutEnd := uint64(r.Start)+uint64(r.Size), uint64(cut.Start)+uint64(cut.Size)
		if head := min(rEnd, uint64(cut.Start)); head > uint64(r.Start) {
			out = append(out, SubRange{r.Start, uint32(head - uint64(r.Start))})
		}
		if tail := max(uint64(r.Start), cutEnd); tail < rEnd {
			out = append(out, SubRange{uint32(tail), uint32(rEnd - tail)})
		}
	}
	return out
}

// clamp returns the parts of ranges that exist in the calling process's own user
// namespace, split at the borders of its map: the kernel maps a range only if one
// range of the parent's map holds all of it (map_write, kernel/user_namespace.c).
func clamp(ranges []SubRange, parent []Range) []SubRange {
	var out []SubRange
	for _, r := range ranges {
		rEnd := uint64(r.Start) + uint64(r.Size)
		for _, p := range parent {
			lo := max(uint64(r.Start), uint64(p.Container))
			hi := min(rEnd, uint64(p.Container)+uint64(p.Size))
			if lo < hi {
				out = append(out, SubRange{uint32(lo), uint32(hi - lo)})
			}
		}
	}
	return out
}
