package spec

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Facts are what Build has to know beside the flags.
type Facts struct {
	ContainerID string // 64 hexadecimal digits
	RootfsPath  string // Spec.Root.Path
	ImageName   string // as the user wrote it
	Image       ocispec.ImageConfig
	ImageHealth *Health // the image's check, nil for none

	// Passwd and Group are the image's /etc/passwd and /etc/group, nil where it has none.
	Passwd, Group []byte

	UID, GID       int    // the calling user
	Groups         []int  // his supplementary groups
	UserName       string // of the calling user, for keep-id; may be empty
	HomeDir        string // of the calling user
	Cwd            string // working directory of the calling user, for --home
	UIDMap, GIDMap []specs.LinuxIDMapping
	// HaveSubIDs says that the maps were written by newuidmap and newgidmap
	// (or with privilege): only then may the container call setgroups(2).
	HaveSubIDs bool

	HostHostname string // for --uts=host
	NumCPU       int    // 0: not known, counts are not checked
	// LastCap is /proc/sys/kernel/cap_last_cap; 0: every capability known to urun.
	LastCap  int
	CgroupV2 bool // the unified hierarchy is mounted
	Rungs    Rungs
	// Files are the numbers of the files besides the standard ones that the caller has given to this process.
	Files []uint
	// StdinTTY says that standard input is a terminal.
	StdinTTY bool

	Host Host
}

// Host answers the questions about the machine that depend on the flags.
type Host interface {
	// LookupEnv is for -e NAME.
	LookupEnv(name string) (string, bool)
	// Environ are all variables, as os.Environ has them.
	Environ() []string
	// ReadFile is for --env-file and --label-file.
	ReadFile(name string) ([]byte, error)
	// Stat is for the sources of bind mounts, devices and time zones.
	Stat(name string) (fs.FileInfo, error)
	// Abs makes a path absolute.
	Abs(name string) (string, error)
	// Devices lists the device files below /dev that --privileged binds.
	Devices() ([]string, error)
}

// System is the Host that this process runs on.
type System struct{}

func (System) LookupEnv(name string) (string, bool)  { return os.LookupEnv(name) }
func (System) Environ() []string                     { return os.Environ() }
func (System) ReadFile(name string) ([]byte, error)  { return os.ReadFile(name) }
func (System) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }
func (System) Abs(name string) (string, error)       { return filepath.Abs(name) }

// Devices lists device files below /dev. Left out are those that every
// container has of its own and those of terminals and mounts, as in podman.
func (System) Devices() ([]string, error) {
	own := []string{"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", ".lxc", ".lxd-mounts", ".udev"}
	var out []string
	err := filepath.WalkDir("/dev", func(name string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(name, "/dev/")
		switch {
		case err != nil:
			// What the caller cannot list, he cannot pass on.
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case slices.Contains(own, rel) && d.IsDir():
			return fs.SkipDir
		case slices.Contains(own, rel):
			return nil
		case d.Type()&fs.ModeDevice != 0 && !virtualTerminal(rel):
			out = append(out, name)
		}
		return nil
	})
	return out, err
}

// virtualTerminal reports tty0, tty1, ...: whoever has them has the machine's console.
func virtualTerminal(rel string) bool {
	n, ok := strings.CutPrefix(rel, "tty")
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}
