// Package origin knows the soft limit of open files that this process was
// started with. Package syscall raises it to the hard one when it is initialized,
// and gives the old one back to children only, without a word to the program.
//
// Packages are initialized in the order of their import paths as far as their
// dependencies allow (since Go 1.21). This one imports nothing, hence the assembly,
// and so precedes syscall; origin_test.go holds that.
package origin

// limit is struct rlimit64.
type limit struct{ soft, hard uint64 }

// files is zero if the limit cannot be read (prlimit(2), Linux 2.6.36).
var files = read()

func read() (l limit) {
	const nofile = 7
	if prlimit(nofile, &l) != 0 {
		return limit{}
	}
	return l
}

// prlimit reads a limit of this process.
//
//go:noescape
func prlimit(resource uintptr, old *limit) (errno uintptr)

// Files returns the limits of open files from before package syscall changed them.
func Files() (soft, hard uint64) { return files.soft, files.hard }
