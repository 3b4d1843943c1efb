package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urun-dev/urun/integration/benchkit"
)

// The part of the document between these lines is this program's.
// row is a line of the table: what was measured, and the most that urun's two ways may take, as a ratio to the kernel's.
// Below is the share of fuse-overlayfs's time that the union may take; 0 is no target.
type row struct {
	key, text            string
	overlay, union, peer float64
}

var rows = []row{
	{"write create", "create 5,000 files", 1.1, 4, 0.5},
	{"write unlink", "remove them", 1.1, 4, 0.5},
	{"write untar", "untar 3,000 files", 1.1, 4, 0.5},
	{"write rm", "rm -rf of them", 1.1, 4, 0.5},
	{"write rename", "make and rename 1,000 directories", 1.1, 4, 0.5},
	{"write clone", "git clone", 1.1, 4, 0.5},
	{"write status", "git status", 0, 0, 0},
	{"rmlower rmlower", "rm -rf of 5,000 files of the image", 0, 0, 0},
	{"find find'", "find, warm", 1.0, 0.8, 0},
	{"stat stat'", "stat of all, warm", 1.0, 0.8, 0},
	{"ls ls'", "ls -lR /usr, warm", 1.0, 0.8, 0},
	{"xattr find'", "find, warm, xattrs in a layer", 1.0, 0.8, 0},
	{"xattr stat'", "stat of all, warm, xattrs in a layer", 1.0, 0.8, 0},
	{"xattr ls'", "ls -lR /usr, warm, xattrs in a layer", 1.0, 0.8, 0},
	{"find find", "find, fresh", 3, 3, 0},
	{"stat stat", "stat of all, fresh", 1.3, 1.3, 0},
	{"ls ls", "ls -lR /usr, fresh", 0, 0, 0},
	{"tar tar'", "tar of /usr, warm", 1.1, 1.3, 0},
	{"tar tar", "tar of /usr, fresh", 1.5, 1.8, 0},
	{"python python'", "python start, warm", 1.0, 1.1, 0},
	{"python python", "python start, fresh", 1.2, 1.3, 0},
	{"read read", "sequential read of 512 MB, fresh", 3, 3, 0},
	{"random random", "20,000 random 4k reads of it, fresh", 12, 12, 0},
	{"clients clients", "64 clients read all small files, fresh", 0, 0, 0},
	{"copyup copyup", "first write of one byte into 512 MB", 1.2, 0.5, 0},
	{"mv mv", "mv of a directory of the image, 2,000 files", 1.5, 0.2, 0},
}

func render(r *results) string {
	var b strings.Builder
	took, before, after := time.Duration(0), []string{}, []string{}
	for _, run := range r.Runs {
		took += run.Took
		before, after = append(before, run.Load[0]), append(after, run.Load[1])
	}
	fmt.Fprintf(&b, "Made by `make bench-fs` in %d run(s) of together %s. Kernel %s, %d CPUs; load average %s before, %s after. %s.\n",
		len(r.Runs), took.Round(time.Second), r.Kernel, r.CPUs, strings.Join(before, ", "), strings.Join(after, ", "), strings.Join(r.Tools, "; "))
	fmt.Fprintf(&b, "The image: %d names in 4 layers. Seconds are medians; in parentheses the ratio to the kernel's overlayfs over unpacked trees in the same run, and whether it met its target.\n\n", r.Nodes)
	b.WriteString("| what | kernel overlayfs, unpacked | urun, `overlay` | urun, `fuse` | fuse-overlayfs, unpacked |\n|---|---|---|---|---|\n")
	for _, w := range rows {
		times := r.Seconds[w.key]
		if times[kernel] == nil {
			continue
		}
		fmt.Fprintf(&b, "| %s | %.3f | %s | %s | %s |\n", w.text, benchkit.Median(times[kernel].Times), cell(times[overlay], w.overlay), cellUnion(times, w), cell(times[peer], 0))
	}
	renderVersions(&b, r)
	renderRest(&b, r)
	return b.String()
}

// renderVersions names what was measured with another version of urun than the last one.
func renderVersions(b *strings.Builder, r *results) {
	others := map[string][]string{}
	for _, w := range rows {
		for _, way := range ours {
			if m := r.Seconds[w.key][way]; m != nil && m.Urun != r.Tools[0] {
				others[m.Urun] = append(others[m.Urun], fmt.Sprintf("%s (`%s`)", w.text, way))
			}
		}
	}
	for _, version := range slices.Sorted(maps.Keys(others)) {
		fmt.Fprintf(b, "\nMeasured with %s: %s.\n", version, strings.Join(others[version], "; "))
	}
}

func (m *measured) ratio() float64 { return benchkit.Median(m.Times) / benchkit.Median(m.Kernel) }

func cell(m *measured, target float64) string {
	if m == nil {
		return ""
	}
	text := fmt.Sprintf("%.3f (%.2f", benchkit.Median(m.Times), m.ratio())
	switch {
	case target == 0:
	case m.ratio() <= target:
		text += fmt.Sprintf(" ≤ %.1f", target)
	default:
		text += fmt.Sprintf(" **> %.1f**", target)
	}
	return text + ")"
}

// cellUnion has two targets where fuse-overlayfs is one of them.
func cellUnion(times map[string]*measured, w row) string {
	text := cell(times[union], w.union)
	if w.peer == 0 || times[union] == nil || times[peer] == nil {
		return text
	}
	share := times[union].ratio() / times[peer].ratio()
	sign := "≤"
	if share > w.peer {
		sign = "**>**"
	}
	return strings.TrimSuffix(text, ")") + fmt.Sprintf("; %.2f %s %.1f of fuse-overlayfs)", share, sign, w.peer)
}

// ratio is the median of the ratios of the rounds.
func ratio(times, to []float64) float64 {
	var all []float64
	for i := range min(len(times), len(to)) {
		all = append(all, times[i]/to[i])
	}
	return benchkit.Median(all)
}

// renderRest is what has no peer.
func renderRest(b *strings.Builder, r *results) {
	var lines []string
	for _, way := range ours {
		for _, state := range []struct{ key, text string }{{"stat'", "warm"}, {"stat", "fresh"}} {
			one, sixty := r.Seconds["one layer "+state.key][way], r.Seconds["60 layers "+state.key][way]
			if one != nil && sixty != nil {
				lines = append(lines, fmt.Sprintf("| stat of 10,000 files in 60 layers, against 1, `%s`, %s | %.2f (target ≤ 1.05) |", way, state.text, ratio(sixty.Times, one.Times)))
			}
		}
	}
	if first, warm := r.Seconds["second tar"][overlay], r.Seconds["second tar'"][overlay]; first != nil {
		lines = append(lines, fmt.Sprintf("| tar of /usr, first in a second container, against the same again (`overlay`) | %.2f (target: as fast as warm) |", benchkit.Median(first.Times)/benchkit.Median(warm.Times)))
	}
	if m, ok := r.Server[overlay]; ok {
		mb := func(n int64) float64 { return float64(n) / 1e6 }
		lines = append(lines, fmt.Sprintf("| memory of the image server after a walk over an image of 100,000 nodes | PSS %.1f MB, RSS %.1f MB, of it anonymous %.1f MB (target ≤ 40 MB) |", mb(m.PSS), mb(m.RSS), mb(m.Anonymous)))
	}
	if len(lines) > 0 {
		fmt.Fprintf(b, "\n| what | |\n|---|---|\n%s\n", strings.Join(lines, "\n"))
	}
}
