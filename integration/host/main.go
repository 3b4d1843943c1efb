// Host boots a small virtual machine, an ordinary Debian with systemd, and runs commands in it: there limits and all
// else that needs a delegated cgroup can be proved on machines that have none.
//
//	host [-kernel 6.1] build
//	host [-kernel 6.1] [-disk DIR] [-user USER] run COMMAND [ARGUMENT...]
//	host [-kernel 6.1] [-disk DIR] [-user USER] shell
//
// Its parts are made of Debian packages and kept in the cache. The machine is emulated: it needs no KVM and is about ten
// times slower than the one outside. DIR is what it finds in /urun, read-only; else bin/urun is in /urun/bin. The
// users are root, alice, bob and carol (integration/host/root.sh). A command's standard files, signals and exit
// status pass through; 125 is a failure of the machine itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/urun-dev/urun/integration/host/wire"
)

func main() {
	status, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		status = 125
	}
	os.Exit(status)
}

func run() (int, error) {
	kernel := flag.String("kernel", "6.1", "Debian's kernel of this `series`: "+kernelList())
	disk := flag.String("disk", "", "the `directory` that the host has as /urun")
	user := flag.String("user", "root", "the `user` who runs the command")
	limit := flag.Duration("timeout", 0, "end it all after this `time`")
	console := flag.Bool("console", false, "show the host's console at the end")
	flag.Parse()
	if !slices.Contains(kernels, *kernel) {
		return 0, fmt.Errorf("no kernel %s; there are %s", *kernel, kernelList())
	}
	// What runs in the host is built for the machine that it emulates.
	if runtime.GOARCH != "amd64" {
		return 0, errors.New("the virtual host is an amd64 machine, and programs are built for " + runtime.GOARCH)
	}
	verb, args := flag.Arg(0), flag.Args()
	switch {
	case verb == "build" && len(args) == 1, verb == "shell" && len(args) == 1, verb == "run" && len(args) > 1:
	default:
		return 0, errors.New("usage: host [-kernel SERIES] [-disk DIR] [-user USER] build | shell | run COMMAND [ARGUMENT...]")
	}
	p, err := build(*kernel)
	if err != nil || verb == "build" {
		return 0, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	start := time.Now()
	m, err := boot(ctx, p, *disk)
	if err != nil && ctx.Err() == nil {
		// Emulation may hang where the machine outside stood still for long.
		fmt.Fprintf(os.Stderr, "host: once more: %v\n", err)
		m, err = boot(ctx, p, *disk)
	}
	stop()
	if err != nil {
		return 0, err
	}
	took, cpu := time.Since(start).Seconds(), m.cpuTime().Seconds()
	fmt.Fprintf(os.Stderr, "host: Linux %s is up after %.1f s (its own clock: %.1f s; %.1f s of CPU)\n", m.boot.Kernel, took, m.boot.Uptime, cpu)
	cmd := wire.Command{User: *user, Args: args[1:]}
	if verb == "shell" {
		cmd.Args = []string{"bash", "-l"}
		cmd.TTY = term.IsTerminal(int(os.Stdin.Fd()))
		cmd.Env = []string{"TERM=" + os.Getenv("TERM"), "PATH=/urun/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
	}
	status, err := m.run(cmd, *limit)
	if *console || err != nil {
		fmt.Fprintf(os.Stderr, "host: the console:\n%s\n", m.console.String())
	}
	return status, errors.Join(err, m.stop())
}
