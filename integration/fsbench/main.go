// Fsbench compares, on the same image, four ways to give a container its files: the kernel's overlayfs over unpacked
// trees, urun with the kernel's overlayfs over its image server, urun with its own union, and fuse-overlayfs over
// unpacked trees. It writes the table of docs/benchmarks.md that belongs to it.
//
//	fsbench [-runs N] [-only REGEXP] [-ways WAY,...] [-keep DIR] [-results FILE] [-out FILE]
//
// With -results it can be run in pieces: what it measures takes the place of the same in that file, and the table is of
// all that is in it. A ratio is always of times of one run.
//
// It runs as an ordinary user; called by root it makes the user urun-bench, if there is none, and measures as that.
// bin/urun must be built.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/urun-dev/urun/integration/benchkit"
)

func main() {
	var err error
	switch arg(1) {
	case "load":
		err = loadMain(os.Args[2:])
	case "enter":
		err = enterMain(os.Args[2:])
	case "measure":
		err = measureMain(os.Args[2:])
	default:
		err = driverMain()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "fsbench: %v\n", err)
		os.Exit(1)
	}
}

func arg(i int) string {
	if len(os.Args) > i {
		return os.Args[i]
	}
	return ""
}

// options are what the driver passes on to the measuring process.
type options struct {
	Dir  string // on disk, of the measuring user
	Urun string
	Runs int
	Only string
	Ways []string // that are measured
}

func driverMain() (err error) {
	var o options
	flag.IntVar(&o.Runs, "runs", 5, "rounds")
	flag.StringVar(&o.Only, "only", "", "only sessions whose name matches this `regexp`")
	waysFlag := flag.String("ways", strings.Join(ways, ","), "the `ways` that are measured; the kernel's always is")
	kept := flag.String("results", "", "the `file` that keeps the results of several runs")
	keep := flag.String("keep", "", "keep the images in this `directory`, and take them from there the next time")
	out := flag.String("out", "", "the `file` whose marked part is rewritten; else the table goes to standard output")
	flag.Parse()
	if _, err := regexp.Compile(o.Only); err != nil {
		return err
	}
	o.Ways = append(strings.Split(*waysFlag, ","), kernel)
	for _, w := range o.Ways {
		if !slices.Contains(ways, w) {
			return fmt.Errorf("-ways: there is no %q, but %s", w, strings.Join(ways, ", "))
		}
	}
	stage, err := os.MkdirTemp("/var/tmp", "urun-fsbench-")
	if err != nil {
		return err
	}
	// Trees that were unpacked in a user namespace may hold directories that nobody may write.
	defer func() { err = errors.Join(err, removeAll(stage)) }()
	o.Dir = filepath.Join(stage, "work")
	if *keep != "" {
		if o.Dir, err = filepath.Abs(*keep); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(stage, 0o755), benchkit.CopyProgram(self, filepath.Join(stage, "fsbench")), benchkit.CopyProgram("bin/urun", filepath.Join(stage, "urun"))); err != nil {
		return err
	}
	o.Urun = filepath.Join(stage, "urun")
	cmd, err := measuring(filepath.Join(stage, "fsbench"), o)
	if err != nil {
		return err
	}
	res := &results{}
	cmd.Stderr = os.Stderr
	raw, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(raw, res)
	}
	if err != nil {
		return fmt.Errorf("measure: %w", err)
	}
	if *kept != "" {
		if res, err = keepResults(*kept, res); err != nil {
			return err
		}
	}
	text := render(res)
	if *out == "" {
		_, err := io.WriteString(os.Stdout, text)
		return err
	}
	return benchkit.Rewrite(*out, "bench-fs", text)
}

// measuring is the command that measures, as an ordinary user.
func measuring(self string, o options) (*exec.Cmd, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	args := []string{self, "measure", string(raw)}
	name := ""
	if os.Getuid() == 0 {
		if name, err = benchUser(o.Dir); err != nil {
			return nil, err
		}
		args = append([]string{"setpriv", "--reuid", name, "--regid", name, "--init-groups"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"HOME=" + o.Dir, "USER=" + name, "LOGNAME=" + name, "LANG=C.UTF-8", "SHELL=/bin/sh",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}
	return cmd, nil
}

// benchUser is the user that root measures as; he gets dir.
func benchUser(dir string) (name string, err error) {
	name = os.Getenv("URUN_BENCH_USER")
	if name == "" {
		name = "urun-bench"
	}
	if _, err := user.Lookup(name); err != nil {
		// With ranges of subordinate ids, as Debian's useradd gives them.
		if err := benchkit.Command("useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/sh", name); err != nil {
			return "", err
		}
	}
	for _, dev := range []string{"/dev/fuse"} {
		if err := os.Chmod(dev, 0o666); err != nil { // as udev has it
			return "", err
		}
	}
	return name, benchkit.Command("chown", name+":", dir)
}

func removeAll(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) // what cannot be changed shows below
		}
		return nil
	})
	return errors.Join(err, os.RemoveAll(dir))
}
