package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// What carries a container's TCP is chosen with the first packet, shown, and can be forced.
func TestNetworkDriver(t *testing.T) {
	port := listen(t)
	none := false // the machine has no nftables for this user
	for _, tt := range []struct{ option, want string }{
		{"", "kernel"},
		{",driver=kernel", "kernel"},
		{",driver=netstack", "netstack: as the option driver says"},
	} {
		if none && tt.want == "kernel" {
			harness.Run(t, "--network", toHost+tt.option, "--", "true").Refused("network driver kernel")
			continue
		}
		t.Run("driver"+tt.option, func(t *testing.T) {
			name := detach(t, []string{"--network", toHost + tt.option}, "sh", "-c",
				fmt.Sprintf("/probe connect 10.0.2.2:%d hello; exec sleep 1000", port))
			var driver string
			for end := time.Now().Add(30 * time.Second); driver == "" || !strings.Contains(harness.Urun(t, "logs", name).Stdout, "hello seen"); time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("no connection, or no driver in the record: %q", driver)
				}
				driver = harness.Urun(t, "inspect", "-f", "{{.NetworkSettings.Driver}}", name).OK()
			}
			if tt.option == "" && strings.HasPrefix(driver, "netstack: ") {
				t.Logf("no nftables with NAT for this user: %s", driver)
				none = true
				return
			}
			if driver != tt.want {
				t.Errorf("the driver is %q, want %q", driver, tt.want)
			}
		})
	}
	harness.Run(t, "--network", "slirp:driver=magic", "--", "true").Refused("driver", "kernel, netstack")
	harness.Urun(t, "info").Has("driver ")
}

// Programs of others on request; what they lack is said.
func TestNetworkPrograms(t *testing.T) {
	port := listen(t)
	for _, driver := range []string{"pasta", "slirp4netns"} {
		t.Run(driver, func(t *testing.T) {
			if _, err := exec.LookPath(driver); err != nil {
				t.Skipf("no %s: %v", driver, err)
			}
			r := harness.Run(t, "--network", toHost+",driver="+driver, "--", "/probe", "connect", fmt.Sprintf("10.0.2.2:%d", port), "hello")
			if strings.Contains(r.Stderr, "routable") || strings.Contains(r.Stderr, "external interface") {
				t.Skipf("%s finds no interface to the world here: %s", driver, r.Stderr)
			}
			r.Says("hello seen")
			if driver == "pasta" {
				return // it lets such a connect time out
			}
			if r := harness.Run(t, "--network", "slirp:driver="+driver, "--", "/probe", "connect", fmt.Sprintf("10.0.2.2:%d", port), "hello"); r.Code == 0 {
				t.Errorf("%s\nthe host's loopback is open by default", r)
			}
		})
	}
	harness.Run(t, "--network", "slirp:driver=slirp4netns", "-p", "18080:80", "--", "true").Refused("network driver slirp4netns", "hint:")
	harness.Run(t, "--network", "pasta", "-p", "80", "--", "true").Refused("network driver pasta", "hint:")
}
