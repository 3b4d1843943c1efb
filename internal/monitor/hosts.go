package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// writeHosts writes the container's own addresses into its /etc/hosts, instead of
// those from before. The file is bound into the container: it is changed in place,
// and what others wrote into it stays.
func (c *container) writeHosts() error {
	path := filepath.Join(c.handle.Dir(), "etc", "hosts")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the user has mounted his own
	}
	if err != nil {
		return fmt.Errorf("write /etc/hosts: %w", err)
	}
	names := c.Hostnames
	if c.handle.Name != "" && !hasWord(names, c.handle.Name) {
		names += " " + c.handle.Name
	}
	text := ownHosts(string(raw), strings.TrimSpace(names), c.addresses())
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write /etc/hosts: %w", err)
	}
	return nil
}

// ownMark ends the lines that are urun's to change.
const ownMark = "# this container"

// ownHosts puts lines for the addresses at the end of a hosts file.
func ownHosts(file, names string, addrs []netip.Addr) string {
	var b strings.Builder
	for line := range strings.Lines(file) {
		if !strings.HasSuffix(strings.TrimSpace(line), ownMark) {
			b.WriteString(line)
		}
	}
	if b.Len() > 0 && !strings.HasSuffix(b.String(), "\n") {
		b.WriteByte('\n')
	}
	for _, a := range addrs {
		fmt.Fprintf(&b, "%s\t%s\t%s\n", a, names, ownMark)
	}
	return b.String()
}

func hasWord(words, word string) bool {
	for w := range strings.FieldsSeq(words) {
		if w == word {
			return true
		}
	}
	return false
}
