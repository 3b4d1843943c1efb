// Hpcbench measures what 64 ranks of a node cost that share one container (--join): a python with numpy from one image, in
// CPU time, in pairs with as many starts of the same python from a directory of the host.
//
//	hpcbench [-ranks N] [-rounds N] [-user NAME] [-out docs/benchmarks.md]
//
// It needs root, to start the others by chroot(2), and mmdebstrap.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	begin = "<!-- made by `make bench-hpc`: begin -->"
	end   = "<!-- made by `make bench-hpc`: end -->"
)

func main() {
	var b bench
	out := flag.String("out", "", "the `file` whose section is rewritten")
	name := flag.String("user", "urun-test", "the `user` whose ranks they are")
	flag.IntVar(&b.ranks, "ranks", 64, "`number` of ranks")
	flag.IntVar(&b.rounds, "rounds", 5, "`number` of pairs")
	flag.Parse()
	if err := b.report(*out, *name); err != nil {
		fmt.Fprintln(os.Stderr, "hpcbench:", err)
		os.Exit(1)
	}
}

func (b *bench) report(out, name string) (err error) {
	if os.Getuid() != 0 {
		return errors.New("it needs root, to start programs from a directory")
	}
	if b.tree, err = tree(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "urun-hpcbench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.prepare(name); err != nil {
		return err
	}
	rows, err := b.measure()
	if err != nil {
		return err
	}
	text := b.table(rows)
	if out == "" {
		_, err := os.Stdout.WriteString(text)
		return err
	}
	return rewrite(out, text)
}

// tree is a Debian root directory with python and numpy, made once.
func tree() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "urun-test", "numpy-1")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp := dir + ".tmp"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(filepath.Dir(dir), 0o755)); err != nil {
		return "", err
	}
	fmt.Println("making a Debian tree with numpy, kept for later runs")
	if err := run("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include=python3-numpy", "bookworm", tmp); err != nil {
		return "", err
	}
	return dir, os.Rename(tmp, dir)
}

func run(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

func (b *bench) table(rows []pair) string {
	var t strings.Builder
	fmt.Fprintf(&t, "Made by `make bench-hpc` on %s: %d ranks at once, `urun run --rm --hpc --join IMAGE python3 -c 'import numpy'`, against as many of the same python by "+
		"chroot from a directory of the host. CPU time of all processes, those of urun included, in seconds.\n\n", time.Now().UTC().Format(time.DateOnly), b.ranks)
	t.WriteString("| start | ranks in a container | from a directory | ratio | blocks read from disk by the ranks' side |\n|---|---|---|---|---|\n")
	for i, p := range rows {
		name := fmt.Sprintf("%d", i+1)
		if i == 0 {
			name = "1, the image not in the page cache"
		}
		fmt.Fprintf(&t, "| %s | %.2f (wall %.1f) | %.2f (wall %.1f) | **%.2f** | %d |\n", name, p.urun.cpu, p.urun.wall, p.native.cpu, p.native.wall,
			p.urun.cpu/p.native.cpu, p.urun.blocks)
	}
	return t.String()
}

func rewrite(file, text string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(data), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no section %s", file, begin)
	}
	return os.WriteFile(file, []byte(before+begin+"\n\n"+text+"\n"+end+after), 0o644)
}
