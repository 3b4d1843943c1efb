package monitor

import (
	"net/netip"
	"testing"
)

func TestOwnLinesOfHostsAreReplacedAndOthersStay(t *testing.T) {
	file := "127.0.0.1\tlocalhost\n10.1.1.1\told\t" + ownMark + "\n192.0.2.1 theirs"
	want := "127.0.0.1\tlocalhost\n192.0.2.1 theirs\n10.9.0.2\th web\t" + ownMark + "\nfd00::2\th web\t" + ownMark + "\n"
	addrs := []netip.Addr{netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd00::2")}
	got := ownHosts(file, "h web", addrs)
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if again := ownHosts(got, "h web", addrs); again != want {
		t.Errorf("the second time: %q", again)
	}
}
