package slirp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// The drivers that are programs of others. Each makes and serves the interface in the container's network namespace, with the addresses that
// this package gives, and finds the host's resolvers itself.
const (
	// DriverPasta is pasta, of passt.
	DriverPasta = "pasta"
	// DriverSlirp4netns is slirp4netns. It has IPv4 only here, and publishes no ports.
	DriverSlirp4netns = "slirp4netns"
)

// External tells whether a driver is a program of others.
func External(driver string) bool { return driver == DriverPasta || driver == DriverSlirp4netns }

// ExternalError is why a driver that is a program of others cannot be used.
type ExternalError struct {
	Driver, Reason, Cure string
}

func (e *ExternalError) Error() string { return "network driver " + e.Driver + ": " + e.Reason }

// Hint is the cure, if there is one.
func (e *ExternalError) Hint() string { return e.Cure }

// FindExternal gives the path of a driver's program, after checking that it understands what ExternalCommand asks of it, and that
// the configuration is one that it can serve.
func FindExternal(cfg Config) (string, error) {
	fail := func(reason, cure string) (string, error) {
		return "", &ExternalError{cfg.Driver, reason, cure}
	}
	pkg := map[string]string{DriverPasta: "passt", DriverSlirp4netns: "slirp4netns"}[cfg.Driver]
	path, err := exec.LookPath(cfg.Driver)
	if err != nil {
		return fail("there is no such program", "install the package "+pkg+", or leave the driver out")
	}
	help, err := exec.Command(path, "--help").CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		return fail(err.Error(), "")
	}
	for _, want := range map[string][]string{
		DriverPasta:       {"--config-net", "--dns-forward", "--netns-only", "--no-netns-quit", "--no-map-gw"},
		DriverSlirp4netns: {"--configure", "--ready-fd", "--cidr", "--netns-type"},
	}[cfg.Driver] {
		if !strings.Contains(string(help), want) {
			return fail("the installed version has no option "+want, "install a later one: slirp4netns 1.0, pasta of 2023 or later")
		}
	}
	if cfg.Driver == DriverSlirp4netns && len(cfg.Ports) > 0 {
		return fail("it publishes no ports here", "leave the driver out, or use pasta")
	}
	for _, p := range cfg.Ports {
		if p.HostPort == 0 {
			return fail("it chooses no free port of the host", "name the port: -p HOST:"+strconv.Itoa(int(p.ContainerPort)))
		}
	}
	return path, nil
}

// netnsPath is where the program finds the network namespace.
const netnsPath = "/proc/self/fd/4"

// ExternalCommand makes the command that serves a network namespace, which has a loopback device so far and is the command's
// descriptor 4. It is to be run with all capabilities in the user namespace that owns the network namespace, and writes to
// its descriptor 3 when the network is there.
func ExternalCommand(cfg Config, path string) *exec.Cmd {
	if cfg.Driver == DriverPasta {
		return exec.Command(path, pastaArgs(cfg)...)
	}
	args := []string{"--configure", "--ready-fd=3", "--mtu=" + strconv.Itoa(cfg.MTU), "--cidr=" + cfg.Address4.Masked().String()}
	if !cfg.AllowHostLoopback {
		args = append(args, "--disable-host-loopback")
	}
	return exec.Command(path, append(args, "--netns-type=path", netnsPath, tunName)...)
}

func pastaArgs(cfg Config) []string {
	args := []string{
		// In the foreground the pid file is written when all is ready.
		"--foreground", "--quiet", "--pid", "/proc/self/fd/3", "--config-net", "--netns-only", "--ns-ifname", tunName,
		"--mtu", strconv.Itoa(cfg.MTU), "--address", cfg.Address4.Addr().String(), "--netmask", strconv.Itoa(cfg.Address4.Bits()),
		"--gateway", cfg.Gateway4.String(), "--dns-forward", cfg.DNS4.String(), "--tcp-ns", "none", "--udp-ns", "none",
	}
	if !cfg.AllowHostLoopback {
		args = append(args, "--no-map-gw")
	}
	// Without addresses of our own, those of the host's would be taken, and made known inside.
	args = append(args, "--ipv4-only")
	for _, proto := range []string{"tcp", "udp"} {
		n := len(args)
		for _, p := range cfg.Ports {
			if p.protocol() == proto {
				args = append(args, "--"+proto+"-ports", pastaPort(p))
			}
		}
		if len(args) == n {
			args = append(args, "--"+proto+"-ports", "none")
		}
	}
	// By path, since pasta would join the user namespace of a pid, in which it is already; and not in /proc/PID, for which it has
	// given up CAP_SYS_PTRACE by then. It would watch the path's directory for its end.
	return append(args, "--no-netns-quit", "--netns", netnsPath)
}

func pastaPort(p PortMapping) string {
	ports := fmt.Sprintf("%d:%d", p.HostPort, p.ContainerPort)
	if p.HostIP != (netip.Addr{}) {
		return p.HostIP.String() + "/" + ports
	}
	return ports
}

// AwaitExternal waits until the command that writes to w's other end, r, is ready; an error means that it ended before.
func AwaitExternal(r *os.File) error {
	n, err := r.Read(make([]byte, 16))
	if n > 0 {
		return nil
	}
	return fmt.Errorf("it ended before the network was there: %w", err)
}
