package dnsproxy

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// resolvers gives the servers of a resolv.conf, read again when the file changes.
type resolvers struct {
	path  string
	fixed []netip.AddrPort // of the configuration; if set the file is not read

	mu      sync.Mutex
	checked time.Time
	mtime   time.Time
	size    int64
	servers []netip.AddrPort
	version uint64 // counts the times that they changed
}

// resolvCheck: the file is looked at no more often than this.
const resolvCheck = time.Second

// list gives the servers in order, and a number that changes with them. A file that cannot be read keeps the servers of the last one that could.
func (r *resolvers) list() (servers []netip.AddrPort, version uint64) {
	if len(r.fixed) > 0 {
		return r.fixed, 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.servers != nil && now.Sub(r.checked) < resolvCheck {
		return r.servers, r.version
	}
	r.checked = now
	// Stat follows the links by which resolvconf and systemd-resolved swap the file.
	st, err := os.Stat(r.path)
	if err == nil && (r.servers == nil || !st.ModTime().Equal(r.mtime) || st.Size() != r.size) {
		var b []byte
		if b, err = os.ReadFile(r.path); err == nil {
			r.mtime, r.size = st.ModTime(), st.Size()
			r.servers = parseResolvers(b)
			r.version++
		}
	}
	if len(r.servers) == 0 {
		// resolv.conf(5): with no nameserver entries, the one on the local machine.
		r.servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return r.servers, r.version
}

// parseResolvers reads the nameserver lines of resolv.conf(5), three at most as glibc does.
func parseResolvers(b []byte) []netip.AddrPort {
	var out []netip.AddrPort
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan() && len(out) < 3; {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	return out
}
