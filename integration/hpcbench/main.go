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
	"strings"
	"time"

	"github.com/urun-dev/urun/integration/artifact"
	"github.com/urun-dev/urun/integration/benchkit"
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
	if b.tree, err = artifact.DebianTree("numpy", "python3-numpy"); err != nil {
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
	return benchkit.Rewrite(out, "bench-hpc", text)
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
