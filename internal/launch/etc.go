package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/slirp"
)

// hostGateway stands for the host's address in --add-host.
const hostGateway = "host-gateway"

// etcNames are the files in /etc that may be generated.
var etcNames = [...]string{"hosts", "hostname", "resolv.conf", "passwd", "group"}

// etcFiles are the files in /etc that are not the image's: they tell of the
// container's name and network, and with keep-id of the caller.
func (p *Plan) etcFiles(net slirp.Config) (map[string]string, error) {
	c := p.Container
	files := map[string]string{}
	if c.PasswdLine != "" {
		files["passwd"] = withLine(p.Passwd, c.PasswdLine)
	}
	if c.GroupLine != "" {
		files["group"] = withLine(p.Group, c.GroupLine)
	}
	if c.Network.Container != "" {
		return files, p.borrowEtc(files)
	}
	var err error
	if files["hosts"], err = hostsFile(c, net); err != nil {
		return nil, err
	}
	if !c.Network.KeepResolvConf {
		if files["resolv.conf"], err = resolvConf(c, net); err != nil {
			return nil, err
		}
	}
	name := c.Spec.Hostname
	if name == "" { // the host's UTS namespace
		if name, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	files["hostname"] = name + "\n"
	return files, nil
}

func withLine(file []byte, line string) string {
	text := string(file)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + strings.TrimSuffix(line, "\n") + "\n"
}

// borrowEtc takes the files that tell of a network from the container that it
// is shared with.
func (p *Plan) borrowEtc(files map[string]string) error {
	st, err := state.Open(p.StateRoot)
	if err != nil {
		return err
	}
	rec, err := st.Find(p.Container.Network.Container)
	if err != nil {
		return err
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		raw, err := os.ReadFile(filepath.Join(st.Dir(rec.ID), "etc", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // that container has mounted its own there
		}
		if err != nil {
			return fmt.Errorf("share network: %w", err)
		}
		files[name] = string(raw)
	}
	return nil
}

func hostsFile(c *spec.Container, net slirp.Config) (string, error) {
	var b strings.Builder
	if c.Network.Mode == "host" {
		raw, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		b.Write(raw)
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, h := range c.Network.Hosts {
		ip := h.IP
		if ip == hostGateway {
			gw, err := gatewayToHost(c.Network, net)
			if err != nil {
				return "", fmt.Errorf("--add-host %s:%s: %w", h.Name, hostGateway, err)
			}
			ip = gw.String()
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, h.Name)
	}
	if c.Network.Mode == "slirp" && net.AllowHostLoopback {
		// Also for who asks other resolvers than the forwarder.
		fmt.Fprintf(&b, "%s\thost.containers.internal host.docker.internal\n", net.Gateway4)
	}
	names := hostnames(c)
	if c.Name != "" && c.Name != c.Spec.Hostname {
		names += " " + c.Name
	}
	switch c.Network.Mode {
	case "slirp":
		fmt.Fprintf(&b, "%s\t%s\n", net.Address4.Addr(), names)
	case "none":
		fmt.Fprintf(&b, "127.0.0.1\t%s\n", names)
	}
	return b.String(), nil
}

// hostnames are the names that the container has for itself.
func hostnames(c *spec.Container) string {
	if c.Spec.Domainname != "" {
		return c.Spec.Hostname + "." + c.Spec.Domainname + " " + c.Spec.Hostname
	}
	return c.Spec.Hostname
}

// resolvConf points at the forwarder of the container's network, which asks the
// host's resolvers, or at those of --dns; on the host's network it is the host's.
func resolvConf(c *spec.Container, net slirp.Config) (string, error) {
	var b strings.Builder
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	switch c.Network.Mode {
	case "slirp":
		for _, ip := range slirpNameservers(c, net) {
			fmt.Fprintf(&b, "nameserver %s\n", ip)
		}
	case "bridge":
		// It knows the names of the network, and asks those of --dns.
		fmt.Fprintf(&b, "nameserver %s\n", network.Resolver)
	case "host":
		if len(c.Network.DNS) == 0 && len(c.Network.DNSSearch) == 0 && len(c.Network.DNSOptions) == 0 {
			return string(host), nil
		}
		for _, ip := range nameservers(c, string(host)) {
			fmt.Fprintf(&b, "nameserver %s\n", ip)
		}
	default:
		return "", nil
	}
	search := c.Network.DNSSearch
	if len(search) == 0 {
		search = lastFields(string(host), "search")
	}
	if len(search) > 0 && search[0] != "." {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	options := c.Network.DNSOptions
	if len(options) == 0 {
		options = lastFields(string(host), "options")
	}
	if c.Network.Mode == "bridge" && !strings.Contains(strings.Join(options, " "), "ndots:") {
		// A container's name has no dot, and is not to be looked for in the search domains first.
		options = append(slices.Clone(options), "ndots:0")
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String(), nil
}

// slirpNameservers are those of --dns. Without it, and for one on the host's
// loopback, which a container can not reach, it is the forwarder, which asks them.
func slirpNameservers(c *spec.Container, net slirp.Config) []netip.Addr {
	for _, ip := range c.Network.DNS {
		if ip.IsLoopback() {
			return []netip.Addr{net.DNS4}
		}
	}
	if len(c.Network.DNS) == 0 {
		return []netip.Addr{net.DNS4}
	}
	return c.Network.DNS
}

func nameservers(c *spec.Container, host string) []string {
	var all []string
	for _, ip := range c.Network.DNS {
		all = append(all, ip.String())
	}
	if len(all) > 0 {
		return all
	}
	for line := range strings.Lines(host) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			all = append(all, f[1])
		}
	}
	return all
}

// lastFields returns the words of the last line that begins with key, which is
// the one that counts (resolv.conf(5)).
func lastFields(conf, key string) []string {
	var last []string
	for line := range strings.Lines(conf) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			last = f[1:]
		}
	}
	return last
}

// bindEtc writes the generated files into dir and mounts them, unless the user
// mounts something there himself.
func bindEtc(c *spec.Container, dir string, files map[string]string) error {
	taken := map[string]bool{}
	for _, m := range c.Spec.Mounts {
		taken[filepath.Clean(m.Destination)] = true
	}
	for _, name := range etcNames {
		content, ok := files[name]
		if !ok || taken["/etc/"+name] || taken["/etc"] {
			continue
		}
		file := filepath.Join(dir, name)
		err := os.WriteFile(file, []byte(content), 0o644)
		if err == nil {
			err = os.Chmod(file, 0o644) // readable for every user inside, whatever the umask
		}
		if err != nil {
			return fmt.Errorf("write /etc/%s: %w", name, err)
		}
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{
			Destination: "/etc/" + name, Type: "bind", Options: []string{"bind", "rprivate"},
		})
	}
	return nil
}

// placeEtc fills in where the generated files are, once that is known.
func placeEtc(c *spec.Container, dir string) {
	for i, m := range c.Spec.Mounts {
		if m.Type == "bind" && m.Source == "" && filepath.Dir(m.Destination) == "/etc" {
			c.Spec.Mounts[i].Source = filepath.Join(dir, filepath.Base(m.Destination))
		}
	}
}
