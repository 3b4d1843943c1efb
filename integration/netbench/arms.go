package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The servers outside, and inside the same where ports are published; the host's ports for those inside differ by network.
const (
	iperfPort, echoPort, httpPort = 5201, 5301, 5401
	publishedBase                 = 20000
)

// network is one of the things compared: a network namespace, and how its processes reach the world.
type network struct {
	name   string
	start  func(context.Context, *network) error
	remote string // the address of the world's servers as seen from inside
	dns    string // of the resolver; empty: not measured
	// published is the number of the network's ports on the host: base, +1 and +2 lead to iperf3, echo and http inside.
	published int

	urun   string // the program, where it is urun's
	ns     int    // a process in the namespace; 0: the world itself
	user   bool   // enter the user namespace as well
	helper int    // the process that moves the packets; 0: none
	iperf  int    // iperf3's server, if it is not the one outside
	alone  string // name of the figure that only this is for, or empty
	stops  []func()
}

// inside makes a command in the network's namespace.
func (e *env) inside(ctx context.Context, n *network, args ...string) *exec.Cmd {
	if n.ns == 0 {
		return e.asUser(ctx, args...)
	}
	enter := []string{"nsenter", "-t", strconv.Itoa(n.ns), "-n"}
	if n.user {
		return e.asUser(ctx, append(append(enter, "-U", "--preserve-credentials"), args...)...)
	}
	cmd := e.asUser(ctx, append(append(enter, "setpriv", "--reuid", strconv.Itoa(int(e.uid)), "--clear-groups"), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // root enters and then becomes the user
	return cmd
}

func (e *env) networks() []*network {
	port := publishedBase
	next := func() int { port += 10; return port }
	all := []*network{
		{name: "host loopback", remote: "127.0.0.1", dns: "127.0.0.1"},
		{name: "veth by root", remote: "10.9.0.1", dns: "10.9.0.1", start: e.veth},
		{name: "urun, kernel", remote: hostIP, dns: "10.0.2.3", published: next(), start: e.urunNetwork("kernel")},
		{name: "urun, netstack", remote: hostIP, dns: "10.0.2.3", published: next(), start: e.urunNetwork("netstack")},
		{name: between, start: e.between},
		{name: "slirp4netns, MTU 65520", remote: "10.0.2.2", dns: "10.0.2.3", start: e.slirp4netns("65520")},
		{name: "slirp4netns, MTU 1500", remote: "10.0.2.2", dns: "10.0.2.3", start: e.slirp4netns("1500")},
		{name: "pasta, tap", remote: "198.51.100.2", dns: "198.51.100.3", start: e.pasta},
		{name: "pasta, splice", remote: "127.0.0.1", published: next(), start: e.pasta},
		{name: "rootlesskit builtin", remote: "10.0.2.2", published: next(), start: e.rootlesskitNetwork, alone: "published"},
	}
	if e.against != "" {
		all = append(all, &network{name: before, urun: e.against, remote: hostIP, dns: "10.0.2.3", published: next(), start: e.urunNetwork("kernel")})
	}
	var chosen []*network
	for _, n := range all {
		n.urun = cmp.Or(n.urun, e.urun)
		if e.only.MatchString(n.name) {
			chosen = append(chosen, n)
		}
	}
	return chosen
}

// background starts a program that lives until the network is stopped.
func (e *env) background(n *network, cmd *exec.Cmd) error {
	log, err := os.Create(filepath.Join(e.dir, fmt.Sprintf("log-%d", len(n.stops))+strings.ReplaceAll(n.name, " ", "")))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stderr = log
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.stops = append(n.stops, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		time.AfterFunc(3*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // by the signal
	})
	return nil
}

// bareSpace makes user and network namespaces for those who bring no own.
func (e *env) bareSpace(ctx context.Context, n *network, user bool) error {
	flags := "-n"
	if user {
		flags = "-Urn"
	}
	cmd := e.asUser(ctx, "unshare", flags, e.self, loadStage, "pause")
	if !user {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := e.background(n, cmd); err != nil {
		return err
	}
	n.ns, n.user = cmd.Process.Pid, user
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	return eventually("the namespace of "+n.name, func() error {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.ns))
		if err == nil && theirs == own {
			err = errors.New("still the old one")
		}
		return err
	})
}

func (e *env) veth(ctx context.Context, n *network) error {
	if err := e.bareSpace(ctx, n, false); err != nil {
		return err
	}
	pid := strconv.Itoa(n.ns)
	in := "nsenter -t " + pid + " -n "
	for _, c := range []string{
		"ip link add veth0 type veth peer name veth1 netns " + pid,
		"ip addr add 10.9.0.1/24 dev veth0", "ip link set veth0 up",
		in + "ip addr add 10.9.0.2/24 dev veth1", in + "ip link set veth1 up", in + "ip link set lo up",
	} {
		if err := run(strings.Fields(c)...); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) slirp4netns(mtu string) func(context.Context, *network) error {
	return func(ctx context.Context, n *network) error {
		if err := e.bareSpace(ctx, n, true); err != nil {
			return err
		}
		cmd := e.asUser(ctx, "slirp4netns", "--configure", "--mtu="+mtu, strconv.Itoa(n.ns), "tap0")
		if err := e.background(n, cmd); err != nil {
			return err
		}
		n.helper = cmd.Process.Pid
		return nil
	}
}

// pasta serves both of its ways: by the tap device to the gateway's address, and by splicing from and to loopback.
func (e *env) pasta(ctx context.Context, n *network) error {
	if err := e.bareSpace(ctx, n, true); err != nil {
		return err
	}
	args := []string{"pasta", "-f", "-q", "--config-net", "-T", fmt.Sprintf("%d,%d,%d", iperfPort, echoPort, httpPort), "-u", "none", "-U", "none", "--dns-forward", "198.51.100.3"}
	if n.published == 0 {
		args = append(args, "-t", "none")
	} else {
		b := n.published
		args = append(args, "-t", fmt.Sprintf("%d:%d,%d:%d,%d:%d", b, iperfPort+1, b+1, echoPort+1, b+2, httpPort+1))
	}
	cmd := e.asUser(ctx, append(args, strconv.Itoa(n.ns))...)
	if err := e.background(n, cmd); err != nil {
		return err
	}
	n.helper = cmd.Process.Pid
	return nil
}

func (e *env) rootlesskitNetwork(ctx context.Context, n *network) error {
	state := filepath.Join(e.home, "rootlesskit")
	args := []string{e.rootlesskit, "--state-dir", state, "--net=slirp4netns", "--mtu=65520", "--port-driver=builtin", "--disable-host-loopback=false", "--copy-up=/run"}
	for i, port := range []int{iperfPort, echoPort, httpPort} {
		args = append(args, "-p", fmt.Sprintf("0.0.0.0:%d:%d/tcp", n.published+i, port+1))
	}
	cmd := e.asUser(ctx, append(args, e.self, loadStage, "pause")...)
	if err := e.background(n, cmd); err != nil {
		return err
	}
	n.user, n.helper = true, cmd.Process.Pid
	return eventually("rootlesskit's child", func() error {
		data, err := os.ReadFile(filepath.Join(state, "child_pid"))
		if err != nil {
			return err
		}
		n.ns, err = strconv.Atoi(strings.TrimSpace(string(data)))
		return err
	})
}

// container runs one that only waits; its root is this program and nothing else. It gives what inspect says of it.
func (e *env) container(ctx context.Context, n *network, name, format string, flags ...string) (string, error) {
	root := filepath.Join(e.home, "root")
	for _, d := range []string{"", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
		if err := os.Chown(filepath.Join(root, d), int(e.uid), int(e.gid)); err != nil {
			return "", err
		}
	}
	if err := os.Link(e.self, filepath.Join(root, "netbench")); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	args := append([]string{n.urun, "run", "-d", "--rm", "--name", name}, flags...)
	if err := e.command(ctx, append(args, "--rootfs", root, "/netbench", loadStage, "pause")...); err != nil {
		return "", err
	}
	n.user = true
	n.stops = append(n.stops, func() { e.say(e.command(context.Background(), n.urun, "rm", "-f", name)) })
	out, err := e.asUser(ctx, n.urun, "inspect", "-f", format, name).Output()
	if err != nil {
		return "", fmt.Errorf("urun inspect: %w", err)
	}
	return string(out), nil
}

// command runs a program as the measuring user to its end.
func (e *env) command(ctx context.Context, args ...string) error {
	if out, err := e.asUser(ctx, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(args[0]), args[1], err, out)
	}
	return nil
}

func (e *env) say(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
	}
}

// urunNetwork is a container with a network of its own.
func (e *env) urunNetwork(driver string) func(context.Context, *network) error {
	return func(ctx context.Context, n *network) error {
		flags := []string{"--network", "slirp:driver=" + driver}
		for i, port := range []int{iperfPort, echoPort, httpPort} {
			flags = append(flags, "-p", fmt.Sprintf("%d:%d", n.published+i, port+1))
		}
		out, err := e.container(ctx, n, fmt.Sprintf("net-%d", n.published), "{{.Init.PID}} {{.Monitor.PID}}", flags...)
		if err != nil {
			return err
		}
		var monitor int
		if _, err := fmt.Sscan(out, &n.ns, &monitor); err != nil {
			return err
		}
		return eventually("the network helper", func() error {
			n.helper, err = childOf(monitor, "__network")
			return err
		})
	}
}

// between is two containers on one network: the servers are in the second.
func (e *env) between(ctx context.Context, n *network) error {
	const name = "bench"
	if err := e.command(ctx, e.urun, "network", "create", name); err != nil {
		return err
	}
	n.stops = append(n.stops, func() { e.say(e.command(context.Background(), e.urun, "network", "rm", "-f", name)) })
	const format = `{{.Init.PID}} {{(index .NetworkSettings.Networks "` + name + `").IPAddress}}`
	server := network{name: n.name}
	for i, c := range []*network{n, &server} {
		out, err := e.container(ctx, n, fmt.Sprintf("between-%d", i), format, "--network", name)
		if err != nil {
			return err
		}
		if _, err := fmt.Sscan(out, &c.ns, &c.remote); err != nil {
			return err
		}
	}
	n.remote, server.user = server.remote, true
	for i, args := range [][]string{
		{"iperf3", "-s", "-p", strconv.Itoa(iperfPort)},
		{e.self, loadStage, "echo", fmt.Sprintf(":%d", echoPort)},
		{e.self, loadStage, "http", fmt.Sprintf(":%d", httpPort)},
	} {
		cmd := e.inside(ctx, &server, args...)
		if err := e.background(n, cmd); err != nil {
			return err
		}
		if i == 0 {
			n.iperf = cmd.Process.Pid
		}
	}
	return nil
}

// childOf finds the child of a process that has a word on its command line.
func childOf(parent int, word string) (int, error) {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		stat, err := procStat(p)
		if err != nil {
			continue // it has ended
		}
		cmdline, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err == nil && stat.ppid == parent && strings.Contains(string(cmdline), word) {
			return strconv.Atoi(filepath.Base(p))
		}
	}
	return 0, fmt.Errorf("process %d has no child %s", parent, word)
}

func eventually(what string, f func() error) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
}
