// Command imagebench measures urun on images of unusual size, and what unpacking the same tar costs: make bench-images.
// It runs as an ordinary user and writes its section of docs/benchmarks.md.
package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urun-dev/urun/integration/benchkit"
)

func main() {
	urun := flag.String("urun", "bin/urun", "the binary")
	out := flag.String("out", "", "document to write the section into; none: standard output")
	million := flag.Int("files", 1_000_000, "files of the largest image")
	flag.Parse()
	if err := run(*urun, *out, *million); err != nil {
		fmt.Fprintf(os.Stderr, "imagebench: %v\n", err)
		os.Exit(1)
	}
}

type bench struct {
	urun, dir string
	report    strings.Builder
}

func run(urun, out string, million int) (err error) {
	b := &bench{}
	if b.urun, err = filepath.Abs(urun); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "urun-imagebench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.printf("Linux %s, %d CPUs. %s.\n\n", release(), runtime.NumCPU(), time.Now().UTC().Format("2006-01-02"))
	b.printf("| image | import | memory | tree | unpacking with tar | mount and stat of one file, median of 11 |\n|---|---|---|---|---|---|\n")
	for _, n := range []int{1000, million / 10, million} {
		if err := b.files(n, n <= million/10); err != nil {
			return err
		}
	}
	if err := b.sparse(); err != nil {
		return err
	}
	if out == "" {
		fmt.Print(b.report.String())
		return nil
	}
	return benchkit.Rewrite(out, "bench-images", b.report.String())
}

func (b *bench) printf(format string, args ...any) { fmt.Fprintf(&b.report, format, args...) }

func release() string {
	raw, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(raw))
}

func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "URUN_ROOT="+filepath.Join(b.dir, "store"))
	return cmd
}

// pipe runs a command on a tar that is made meanwhile, and returns what it printed, its time and its largest memory.
func (b *bench) pipe(make func(w *tar.Writer) error, name string, args ...string) (out string, took time.Duration, memory int64, err error) {
	cmd := b.command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", 0, 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return "", 0, 0, err
	}
	w := tar.NewWriter(in)
	merr := errors.Join(make(w), w.Close(), in.Close())
	if err := errors.Join(cmd.Wait(), merr); err != nil {
		return "", 0, 0, fmt.Errorf("%s: %w: %s", cmd, err, stderr.String())
	}
	usage, _ := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return strings.TrimSpace(stdout.String()), time.Since(start), usage.Maxrss << 10, nil
}

// manyFiles writes files of 100 bytes, about as many to a directory as an image has.
func manyFiles(n int) func(w *tar.Writer) error {
	return func(w *tar.Writer) error {
		body := bytes.Repeat([]byte("x"), 100)
		for i := range n {
			h := &tar.Header{
				Name: fmt.Sprintf("usr/share/package-%05d/dir-%02d/file-with-some-name-%d", i/160, i/16%10, i), Typeflag: tar.TypeReg, Mode: 0o644,
				Size: 100, ModTime: time.Unix(1_700_000_000, 0),
			}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			if _, err := w.Write(body); err != nil {
				return err
			}
		}
		return nil
	}
}

func (b *bench) files(n int, peer bool) error {
	id, took, memory, err := b.pipe(manyFiles(n), b.urun, "import", "-")
	if err != nil {
		return err
	}
	trees, err := filepath.Glob(filepath.Join(b.dir, "store", "trees", "*"))
	if err != nil {
		return err
	}
	size := int64(0)
	for _, t := range trees {
		info, err := os.Stat(t)
		if err != nil {
			return err
		}
		size = max(size, info.Size())
	}
	unpacked := ""
	if peer {
		to := filepath.Join(b.dir, "unpacked")
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		_, t, _, err := b.pipe(manyFiles(n), "tar", "-x", "-C", to)
		if err != nil {
			return err
		}
		unpacked = fmt.Sprintf("%.2f s", t.Seconds())
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	mount, err := b.mountTime(id, fmt.Sprintf("usr/share/package-%05d/dir-00", (n-1)/160))
	if err != nil {
		return err
	}
	b.printf("| %d files | %.2f s | %d MB | %.1f MB, %d bytes a file | %s | %.1f ms |\n", n, took.Seconds(), memory>>20, float64(size)/1e6, size/int64(n), unpacked, mount)
	return nil
}

// mountTime is how long it takes to mount an image for a command that looks at one file of it, in ms.
func (b *bench) mountTime(id, name string) (float64, error) {
	dir := filepath.Join(b.dir, "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	var times []float64
	for range 11 {
		start := time.Now()
		if out, err := b.command(b.urun, "image", "mount", id, dir, "--", "stat", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("image mount: %w: %s", err, out)
		}
		times = append(times, float64(time.Since(start).Microseconds())/1000)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

// sparse imports a file of 20 GB with a byte at each end and in the middle, and reads it.
func (b *bench) sparse() error {
	const size = 20_000_000_000
	src := filepath.Join(b.dir, "src")
	if err := os.Mkdir(src, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(src, "large"))
	if err != nil {
		return err
	}
	for at, s := range map[int64]string{0: "first", size / 2: "middle", size - 4: "last"} {
		if _, err := f.WriteAt([]byte(s), at); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	start := time.Now()
	out, err := b.command("sh", "-c", "tar -C "+src+" -S --format=posix -c large | "+b.urun+" import -").Output()
	if err != nil {
		return fmt.Errorf("import of a sparse file: %w", err)
	}
	took := time.Since(start)
	dir := filepath.Join(b.dir, "mnt")
	script := fmt.Sprintf("stat -c %%s large; for at in 0 %d %d; do tail -c +$((at+1)) large | head -c 6; echo; done", int64(size/2), int64(size-4))
	start = time.Now()
	got, err := b.command(b.urun, "image", "mount", strings.TrimSpace(string(out)), dir, "--", "sh", "-c", "cd "+dir+" && "+script).Output()
	if want := fmt.Sprintf("%d\nfirst\x00\nmiddle\nlast\n", int64(size)); err != nil || string(got) != want {
		return fmt.Errorf("read a sparse file: %q, want %q, %w", got, want, err)
	}
	b.printf("\nA sparse file of 20 GB: import %.2f s with the tar that makes it, mount and reads at its beginning, middle and end %.0f ms.\n", took.Seconds(), float64(time.Since(start).Microseconds())/1000)
	return nil
}
