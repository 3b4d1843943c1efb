package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// servers are the image servers that run: pid -> number of containers.
func servers(t *testing.T) map[int]int {
	t.Helper()
	return lingerers(t, "image server")
}

func onlyServer(t *testing.T) (pid int) {
	t.Helper()
	all := servers(t)
	if len(all) != 1 {
		t.Fatalf("image servers, with their users: %v, want one", all)
	}
	for pid = range all {
	}
	return pid
}

// lingering gives the test a holder of its own that lingers, and containers that use an image server, which those with
// emulated ids do not.
func lingering(t *testing.T) {
	t.Helper()
	ownHolder(t)
	t.Setenv("URUN_LINGER", "1m")
	config := t.TempDir()
	if err := os.Mkdir(filepath.Join(config, "urun"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(config, "urun", "config.toml"), "storage = \"overlay\"\n")
	t.Setenv("XDG_CONFIG_HOME", config)
}

func TestContainersOfOneImageShareItsServer(t *testing.T) {
	lingering(t)
	one := detach(t, nil, "sleep", "1000")
	server := onlyServer(t)
	two := detach(t, nil, "sleep", "1000")
	harness.Run(t, "--network", "container:"+one, "--", "true").OK()
	if all := servers(t); len(all) != 1 || all[server] != 2 {
		t.Errorf("image servers: %v, want %d with 2 containers", all, server)
	}
	harness.Urun(t, "rm", "-f", one, two).OK()
	harness.Eventually(t, 10*time.Second, "the server stays, unused", func() bool {
		users, ok := servers(t)[server]
		return ok && users == 0
	})
	harness.Run(t, "true").OK()
	if now := onlyServer(t); now != server {
		t.Errorf("process %d serves now, and not %d", now, server)
	}
}

func TestAKilledServerEndsItsContainersAndIsReplaced(t *testing.T) {
	lingering(t)
	names := []string{
		detach(t, nil, "sh", "-c", "while :; do cat /usr/bin/* >/dev/null; done"),
		detach(t, nil, "sleep", "1000"),
	}
	server := onlyServer(t)
	endHolder(t, server) // a process like another
	for _, name := range names {
		harness.Eventually(t, 20*time.Second, name+" has ended", func() bool {
			return harness.Urun(t, "inspect", "-f", "{{.State.Running}}", name).OK() == "false"
		})
		harness.Urun(t, "inspect", "-f", "{{.State.Error}}", name).Has("the image server ended")
	}
	harness.Sh(t, "cat /demo/kept").Says("from layer 3")
	if now := onlyServer(t); now == server {
		t.Errorf("process %d serves still", now)
	}
}

func TestAContainerReadsOnWithoutItsHolder(t *testing.T) {
	lingering(t)
	name := detach(t, nil, "sh", "-c", "read -r _ </proc/self/stat; while [ ! -e /go ]; do sleep 0.05; done; cat /demo/kept")
	for _, pid := range holders(t) {
		endHolder(t, pid)
	}
	// The image is served on: one command makes another read what nobody has read so far.
	rec := harness.Urun(t, "inspect", "-f", "{{.State.Pid}}", name).OK()
	if err := os.WriteFile("/proc/"+rec+"/root/go", nil, 0o644); err != nil {
		t.Skipf("no way into a container's root from outside: %v", err)
	}
	harness.Urun(t, "wait", name).Says("0")
	harness.Urun(t, "logs", name).Says("from layer 3")
}

func TestAnImageServerThatIsNotUsedDoesNotKeepTheImage(t *testing.T) {
	lingering(t)
	t.Setenv("URUN_ROOT", t.TempDir())
	id := harness.Urun(t, "pull", "--quiet", "oci:"+harness.DemoLayout()+":latest").OK()
	harness.Urun(t, "run", "--rm", id, "true").OK()
	server := onlyServer(t)
	name := unique(t)
	harness.Urun(t, "run", "-d", "--name", name, id, "sleep", "1000").OK()
	harness.Urun(t, "rmi", "-f", id).Exits(1)
	if now := onlyServer(t); now != server {
		t.Errorf("the server of a running container was replaced by %d", now)
	}
	harness.Urun(t, "rm", "-f", name).OK()
	harness.Urun(t, "rmi", "-f", id).OK()
	if all := servers(t); len(all) != 0 {
		t.Errorf("still served: %v", all)
	}
}

// What a container leaves in the processes that outlive it would add up.
func TestManyContainersLeaveNothingInHolderAndServer(t *testing.T) {
	lingering(t)
	runs := 40
	if v := os.Getenv("URUN_CHURN"); v != "" {
		var err error
		if runs, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	const warm = 10 // until what is allocated once is allocated
	for range warm {
		harness.Run(t, "true").OK()
	}
	server, keeper := onlyServer(t), holders(t)[0]
	before := []usage{use(t, keeper), use(t, server)}
	for range runs {
		harness.Run(t, "cat", "/demo/kept").OK()
	}
	harness.Eventually(t, 10*time.Second, "nobody uses the server", func() bool { return servers(t)[server] == 0 })
	for i, pid := range []int{keeper, server} {
		now := use(t, pid)
		t.Logf("process %d: %+v, then after %d containers %+v", pid, before[i], runs, now)
		if now.files > before[i].files+3 || now.threads > before[i].threads+8 || now.kilobytes > before[i].kilobytes+8<<10 {
			t.Errorf("process %d grew from %+v to %+v", pid, before[i], now)
		}
	}
}

type usage struct{ files, threads, kilobytes int }

func use(t *testing.T, pid int) (u usage) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Skipf("this kernel does not show the files of a process in another user namespace: %v", err)
	}
	u.files = len(files)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		for name, into := range map[string]*int{"Threads:": &u.threads, "RssAnon:": &u.kilobytes} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				if *into, err = strconv.Atoi(strings.Fields(rest)[0]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatal(err)
	}
	return u
}
