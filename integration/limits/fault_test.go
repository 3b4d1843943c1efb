package limits

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

func TestLifeGoesOnWithoutABus(t *testing.T) {
	needs(t, "memory")
	name := detach(t, []string{"--memory", "50m"}, "sleep 1000")
	scope := cgroup(t, name)
	back := sync.OnceFunc(func() { systemctl(t, "start", "dbus.socket") })
	t.Cleanup(back)
	systemctl(t, "stop", "dbus.socket", "dbus.service")
	harness.Urun(t, "update", "--memory", "60m", name).OK()
	if got := payload(t, scope, "memory.max"); got != "62914560" {
		t.Errorf("memory.max is %s", got)
	}
	harness.Urun(t, "pause", name).OK()
	harness.Urun(t, "unpause", name).OK()
	// One beside it takes no word with systemd, and for a scope of its own there is systemd's private socket.
	harness.Run(t, "--memory", "50m", "--", "echo", "beside").Says("beside")
	harness.Run(t, "--memory", "50m", "--cgroup-parent", "x.slice", "--", "echo", "alone").Says("alone")
	harness.Urun(t, "rm", "-f", name).OK()
	harness.Eventually(t, patience, "its cgroup is gone", func() bool { return gone(scope) })
	back()
	harness.Eventually(t, patience, "the bus is back", func() bool {
		return harness.Run(t, "--memory", "50m", "--cgroup-parent", "x.slice", "--", "true").Code == 0
	})
}

func TestABusThatVanishesInMidCallIsAnError(t *testing.T) {
	needs(t, "memory")
	bus := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", bus)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go vanishAt(c, "StartTransientUnit")
		}
	}()
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+bus)
	harness.Run(t, "--memory", "50m", "--cgroup-parent", "x.slice", "--", "true").Refused("start urun-", "hint:")
	harness.Urun(t, "ps", "-a", "--filter", "ancestor="+harness.DemoImage, "--format", "{{.State}}").Says("")
}

// vanishAt passes a connection on to the real bus until a word goes by.
func vanishAt(c net.Conn, word string) {
	defer c.Close()
	real, err := net.Dial("unix", fmt.Sprintf("/run/user/%d/bus", os.Getuid()))
	if err != nil {
		return
	}
	defer real.Close()
	go func() { // ends with either connection
		buf := make([]byte, 1<<16)
		for {
			n, err := real.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1<<16)
	for {
		n, err := c.Read(buf)
		if err != nil || bytes.Contains(buf[:n], []byte(word)) {
			return
		}
		if _, err := real.Write(buf[:n]); err != nil {
			return
		}
	}
}

// Both find no holder, and both ask systemd for what they would share.
func TestTwoStartsAtOnceOfAStoreThatNobodyUses(t *testing.T) {
	needs(t, "memory")
	store := filepath.Join(filepath.Dir(harness.Store), "another")
	image := harness.Urun(t, "--root", store, "pull", "--quiet", "oci:"+harness.DemoLayout()+":latest").OK()
	var both sync.WaitGroup
	for i := range 2 {
		both.Go(func() {
			r := harness.Urun(t, "--root", store, "run", "--rm", "--memory", "50m", image, "echo", fmt.Sprint(i))
			if r.Code != 0 || strings.TrimSpace(r.Stdout) != fmt.Sprint(i) {
				t.Error(r)
			}
		})
	}
	both.Wait()
	harness.Urun(t, "--root", store, "ps", "-aq").Says("")
}

func TestStatsIsALiveTable(t *testing.T) {
	needs(t, "memory", "cpu", "pids")
	name := detach(t, []string{"--memory", "200m", "--cpus", "0.3"}, "while :; do :; done")
	cmd := exec.Command(harness.Binary, "stats", "--interval", "500ms", "--no-reset", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tables, throttled, pressed := 0, false, false
	for sc := bufio.NewScanner(out); sc.Scan() && (tables < 3 || !throttled || !pressed) && tables < 200; {
		f := strings.Fields(sc.Text())
		if strings.HasPrefix(sc.Text(), "CONTAINER ID") {
			tables++
			continue
		}
		// ID NAME CPU THROTTLED MEM / LIMIT MEM% NET / NET BLOCK / BLOCK PIDS PSI PSI PSI; what is not known is one word.
		if len(f) < 10 || f[1] != name || f[6] == "" {
			t.Fatalf("a row of the table is %q", sc.Text())
		}
		throttled = throttled || f[3] != "0.00%" && strings.HasSuffix(f[3], "%")
		pressed = pressed || strings.HasSuffix(f[len(f)-3], "%") && f[len(f)-3] != "0.00%"
	}
	if tables < 3 || !throttled || !pressed {
		t.Errorf("in %d tables: throttled %v, pressed %v", tables, throttled, pressed)
	}
	if err := errors.Join(cmd.Process.Signal(unix.SIGINT), cmd.Wait()); err != nil {
		t.Errorf("interrupted: %v", err)
	}
}
