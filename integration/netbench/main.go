// Netbench compares the networks of containers in one run, by turns: urun's drivers, slirp4netns, pasta and rootlesskit's port
// driver, with the host's loopback and a veth pair made by root as limits.
//
//	netbench [-urun PROGRAM] [-rootlesskit PROGRAM] [-user NAME] [-out FILE] [-rounds N] [-span DURATION] [-only REGEXP] [-figures REGEXP] [-pieces FILE]
//
// A whole run takes minutes. With -pieces it can be made of several, each of some figures: what is measured is kept in the file, and the
// report is of all that it holds. A figure is always measured on all networks in one piece, by turns.
//
// It is called by root, who makes what an ordinary user cannot: a network namespace that stands for the host, so that nothing
// of the machine's own network is measured or disturbed, a veth pair, and a private /etc/resolv.conf. Everything that is compared
// runs as an ordinary user in that world. The load comes from iperf3, wrk and dnsperf, and from this program
// (round trips, connects one after the other) where Debian has no tool that gives the figure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/urun-dev/urun/integration/benchkit"
)

const worldStage = "__world"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) > 2 && os.Args[1] == loadStage:
		err = load(os.Args[2], os.Args[3:])
	case len(os.Args) > 1 && os.Args[1] == worldStage:
		err = world(ctx, os.Args[2:])
	default:
		err = outer(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "netbench: %v\n", err)
		os.Exit(1)
	}
}

// options are those of the command line; the stage in the new namespaces parses the same one.
type options struct {
	urun, against, rootlesskit, user, out string
	rounds                                int
	span                                  time.Duration
	only, figures                         *regexp.Regexp
	pieces                                string
}

func parseOptions(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("netbench", flag.ContinueOnError)
	f.StringVar(&o.urun, "urun", "bin/urun", "the `program` to measure")
	f.StringVar(&o.against, "against", "", "another `program`, an earlier urun, to measure by turns with it")
	f.StringVar(&o.rootlesskit, "rootlesskit", "bin/peers/rootlesskit", "rootlesskit's `program`")
	f.StringVar(&o.user, "user", "urun-bench", "the `user` to measure as")
	f.StringVar(&o.out, "out", "", "the `document` to rewrite between its markers")
	f.IntVar(&o.rounds, "rounds", 5, "rounds; their medians count")
	f.DurationVar(&o.span, "span", time.Second, "of each measurement")
	f.StringVar(&o.pieces, "pieces", "", "the `file` that holds what earlier runs have measured, and gets what this one does")
	only := f.String("only", "", "`expression` for the networks to measure")
	which := f.String("figures", "", "`expression` for the figures to measure")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if f.NArg() != 0 {
		return o, errors.New("no arguments are expected")
	}
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, err
	}
	o.figures, err = regexp.Compile(*which)
	return o, err
}

// outer starts the measuring stage in namespaces of its own.
func outer(ctx context.Context) error {
	o, err := parseOptions(os.Args[1:])
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("must be called by root: a veth pair and a network namespace that stands for the host are root's to make; what is measured runs as the user of -user")
	}
	dir, err := os.MkdirTemp("/var/tmp", "urun-netbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	report := filepath.Join(dir, "report")
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{worldStage, dir}, os.Args[1:]...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// The pid namespace takes with it whatever a measured program leaves behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return err
	}
	text, err := os.ReadFile(report)
	if err != nil {
		return err
	}
	fmt.Print(string(text))
	if o.out == "" {
		return nil
	}
	return benchkit.Rewrite(o.out, "bench-net", string(text))
}
