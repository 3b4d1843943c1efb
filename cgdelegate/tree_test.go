package cgdelegate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fakeTree makes files of a cgroup tree in a plain directory: path to content.
func fakeTree(t *testing.T, files map[string]string) hierarchy {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return hierarchy{mount: dir}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestApplyWritesThePayloadsFiles(t *testing.T) {
	h := fakeTree(t, map[string]string{
		"cgroup.controllers": "cpu memory pids", "s.scope/cgroup.controllers": "cpu memory pids",
		"s.scope/payload/memory.max": "max", "s.scope/payload/memory.current": "1000",
		"s.scope/payload/cpu.max": "max 100000", "s.scope/payload/pids.max": "max",
	})
	s := &Scope{dir: filepath.Join(h.mount, "s.scope"), h: h}
	// There is no memory.swap.max: it is not asked for by name, so that is fine.
	if err := s.Apply(Limits{Memory: 5000, CPUQuota: 50000, Pids: 7}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"memory.max": "5000", "cpu.max": "50000 100000", "pids.max": "7"} {
		if got := read(t, s.file(file)); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if err := s.Apply(Limits{Memory: 999}); err == nil || !strings.Contains(err.Error(), "1000 are in use") {
		t.Error("a limit under the use", err)
	}
	if err := s.Apply(Limits{Memory: 5000, MemorySwap: 6000}); err == nil || !strings.Contains(err.Error(), "memory.swap.max: this kernel has no such limit") {
		t.Error("a missing file that was asked for", err)
	}
	if _, err := os.Stat(s.file("memory.swap.max")); err == nil {
		t.Error("a control file was created")
	}
	var u *UnavailableError
	if err := s.Apply(Limits{IOWeight: 5}); !errors.As(err, &u) || u.Cause != NoController || u.Controller != "io" {
		t.Error(err)
	}
}

func TestTheMissingControllerIsTracedToItsUnit(t *testing.T) {
	uid := strconv.Itoa(os.Geteuid())
	service := "user.slice/user-" + uid + ".slice/user@" + uid + ".service"
	scope := service + "/app.slice/urun-x.scope"
	files := func(atService string) map[string]string {
		all := map[string]string{}
		for dir := scope; dir != "."; dir = filepath.Dir(dir) {
			all[dir+"/cgroup.controllers"] = "memory pids"
		}
		all["cgroup.controllers"] = "cpuset memory pids"
		all["user.slice/cgroup.controllers"] = "cpuset memory pids"
		all[service+"/cgroup.controllers"] = atService
		return all
	}
	for _, tc := range []struct {
		name, controller, unit, cure string
		hybrid                       bool
	}{
		{"not given to the user", "cpuset", "user@" + uid + ".service", "delegate.conf", false},
		{"not in the kernel", "io", "", "cgroup_enable=io", false},
		{"in a v1 hierarchy", "io", "", "unified_cgroup_hierarchy", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if uid == "0" && tc.unit != "" {
				t.Skip("missing: an ordinary user (root has no user manager in between)")
			}
			h := fakeTree(t, files("memory pids"))
			h.hybrid = tc.hybrid
			err := h.missingController(filepath.Join(h.mount, scope), []string{"memory", tc.controller})
			var u *UnavailableError
			if !errors.As(err, &u) || u.Unit != tc.unit || u.Controller != tc.controller || !strings.Contains(u.Hint(), tc.cure) {
				t.Fatalf("%v unit %q hint %q", err, u.Unit, u.Hint())
			}
			if !errors.Is(err, ErrUnavailable) {
				t.Error("not ErrUnavailable")
			}
			t.Log(err, "/", u.Hint())
		})
	}
	h := fakeTree(t, files("memory pids"))
	if err := h.missingController(filepath.Join(h.mount, scope), []string{"memory", "pids"}); err != nil {
		t.Error(err)
	}
}

func TestStatsAreRead(t *testing.T) {
	h := fakeTree(t, map[string]string{
		"s/payload/cgroup.controllers":  "cpu io memory pids\n",
		"s/payload/cpu.stat":            "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 500\n",
		"s/payload/memory.current":      "4096\n",
		"s/payload/memory.peak":         "8192\n",
		"s/payload/memory.max":          "max\n",
		"s/payload/memory.stat":         "anon 5\nfile 7\n",
		"s/payload/memory.swap.current": "3\n",
		"s/payload/memory.events":       "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n",
		"s/payload/pids.current":        "2\n",
		"s/payload/pids.max":            "50\n",
		"s/payload/io.stat":             "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=0 rios=1 wios=0 cost.usage=1.5\n",
		"s/payload/memory.pressure":     "some avg10=1.50 avg60=0.10 avg300=0.00 total=12\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=1\n",
	})
	s := &Scope{dir: h.mount + "/s", h: h}
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.CPU.Usage != 3*time.Second || st.CPU.Throttled != 4 || st.CPU.ThrottledTime != 500*time.Microsecond ||
		st.Memory.Usage != 4096 || st.Memory.Peak != 8192 || st.Memory.Limit != -1 || st.Memory.Cache != 7 || st.Memory.Swap != 3 ||
		st.Pids.Current != 2 || st.Pids.Limit != 50 || st.IO.ReadBytes != 15 || st.IO.Writes != 2 {
		t.Errorf("%+v", st)
	}
	want := Pressure{[3]float64{1.5, 0.1, 0}, [3]float64{0.5, 0, 0}}
	if st.Pressure["memory"] != want {
		t.Errorf("%+v", st.Pressure)
	}
	if e, err := s.Events(); err != nil || e.OOMKill != 4 || e.High != 1 {
		t.Error(e, err)
	}
	if killed, err := s.OOMKilled(); !killed || err != nil {
		t.Error(killed, err)
	}
	bare := fakeTree(t, map[string]string{"s/payload/cgroup.controllers": ""})
	s = &Scope{dir: bare.mount + "/s", h: bare}
	if st, err := s.Stats(); err != nil || st.Memory.Limit != -1 {
		t.Error("without controllers", st, err)
	}
	if killed, err := s.OOMKilled(); killed || err != nil {
		t.Error(killed, err)
	}
}

func TestParseProcCgroup(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
		bad              bool
	}{
		{"v2", "0::/user.slice/x\n", "/user.slice/x", false},
		{"hybrid reads the line of v2 alone", "12:pids:/a\n1:name=systemd:/b\n0::/c:d\n", "/c:d", false},
		{"v1", "1:name=systemd:/b\n", "", true},
		{"outside of the namespace", "0::/../x\n", "", true},
		{"gone", "0::/x (deleted)\n", "", true},
		{"empty", "", "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseProcCgroup(tc.text)
			if got != tc.want || (err != nil) != tc.bad {
				t.Fatal(got, err)
			}
		})
	}
}

func FuzzParsers(f *testing.F) {
	f.Add("0::/x\n")
	f.Add("some avg10=1.50 avg60=0.10 avg300=0.00 total=12\n")
	f.Add("8:0 rbytes=1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := parseProcCgroup(text); err == nil && !strings.HasPrefix(p, "/") {
			t.Error(p)
		}
		_, _ = parsePressure(strings.NewReader(text))
		parseIOStat(text)
	})
}

func TestAddressesInOrder(t *testing.T) {
	env := map[string]string{
		"DBUS_SESSION_BUS_ADDRESS": "tcp:host=x;unix:abstract=abc,guid=1;unix:path=/tmp/b,guid=2",
		"XDG_RUNTIME_DIR":          "/run/user/7",
	}
	var got []string
	for _, a := range addresses(7, func(k string) string { return env[k] }) {
		got = append(got, a.path)
	}
	if want := []string{"@abc", "/tmp/b", "/run/user/7/bus", "/run/user/7/systemd/private"}; !reflect.DeepEqual(got, want) {
		t.Error(got)
	}
	got = nil
	for _, a := range addresses(0, func(k string) string { return env[k] }) {
		got = append(got, a.path)
	}
	if want := []string{"/run/dbus/system_bus_socket", "/run/systemd/private"}; !reflect.DeepEqual(got, want) {
		t.Error(got)
	}
}

func TestAChangedFileEndsTheWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cgroup.events")
	if err := os.WriteFile(path, []byte("populated 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	empty := func(text string) bool { return text == "populated 0\n" }
	if err := watchFile(ctx, path, empty); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() { done <- watchFile(context.Background(), path, empty) }()
	time.Sleep(20 * time.Millisecond)
	if err := os.WriteFile(path, []byte("populated 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the change went unnoticed")
	}
}
