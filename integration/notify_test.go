package integration

import (
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// A unit of Type=notify is up when the container's command runs.
func TestServiceManagerIsToldWhenTheCommandRuns(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	name := unique(t)
	harness.Urun(t, "create", "--name", name, harness.DemoImage, "sh", "-c", `echo "socket: $NOTIFY_SOCKET"; sleep 1000`).OK()
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	cmd := exec.Command(harness.Binary, "start", "--attach", name)
	cmd.Env = append(cmd.Environ(), "NOTIFY_SOCKET="+socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := l.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := l.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	harness.Urun(t, "ps", "--format", "{{.Names}}").Has(name)
	harness.Eventually(t, 20*time.Second, "the container knows no socket", func() bool {
		return harness.Urun(t, "logs", name).OK() == "socket:"
	})
	harness.Urun(t, "stop", "-t", "0", name).OK()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 137 {
		t.Errorf("start --attach: %v", err)
	}
}
