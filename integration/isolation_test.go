package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

func TestEveryNamespaceIsNew(t *testing.T) {
	out := harness.Sh(t, `for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done`).OK()
	inside := strings.Fields(out)
	if len(inside) != 7 {
		t.Fatalf("got %q", out)
	}
	for _, ns := range inside {
		name, _, _ := strings.Cut(ns, ":")
		outside, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if ns == outside {
			t.Errorf("%s is the host's", ns)
		}
	}
}

func TestCommandIsPidOneAndSeesOnlyItsOwn(t *testing.T) {
	harness.Run(t, "sh", "-c", "echo $$; cd /proc; echo [0-9]*").Says("1\n1")
}

func TestRootInsideIsTheCallerOutside(t *testing.T) {
	harness.Run(t, "id", "-u").Says("0")
	dir := t.TempDir()
	harness.Sh(t, "-v", dir+":/out", "echo hello >/out/file").OK()
	fi, err := os.Stat(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := ownerOf(fi); uid != os.Getuid() {
		t.Errorf("written by root inside: uid %d outside, want %d", uid, os.Getuid())
	}
}

func TestHostNameIsItsOwn(t *testing.T) {
	before, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "--hostname", "inside", "--domainname", "example.org", "--", "sh", "-c",
		"uname -n; cat /proc/sys/kernel/domainname /etc/hostname").Says("inside\nexample.org\ninside")
	if own := harness.Run(t, "uname", "-n").OK(); own == before || own == "" {
		t.Errorf("default host name is %q", own)
	}
	if after, err := os.Hostname(); err != nil || after != before {
		t.Errorf("the host's name is %q now, was %q (%v)", after, before, err)
	}
}

func TestHostNameResolvesInside(t *testing.T) {
	harness.Run(t, "--hostname", "inside", "--", "grep", "-c", "inside", "/etc/hosts").OK()
}

func TestSystemVMemoryIsPrivate(t *testing.T) {
	const key = 77123
	out, err := exec.Command(harness.Probe, "sysv", fmt.Sprint(key)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ipcrm", "-M", fmt.Sprint(key)).CombinedOutput(); err != nil {
			t.Errorf("ipcrm: %v: %s", err, out)
		}
	})
	if !strings.Contains(string(out), fmt.Sprint("key ", key)) {
		t.Fatalf("the host does not see its own segment: %s", out)
	}
	harness.Run(t, "/probe", "sysv").Says("")
	harness.Run(t, "/probe", "sysv", "4711").Says("key 4711")
	harness.Run(t, "--ipc", "host", "--", "/probe", "sysv").Has(fmt.Sprint("key ", key))
}

func TestPosixQueuesArePrivate(t *testing.T) {
	// mq_open names have no slash in the system call.
	harness.Run(t, "/probe", "mqueue", "urun-test-queue", "create").Says("urun-test-queue opened")
	out, err := exec.Command(harness.Probe, "mqueue", "urun-test-queue", "open").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "urun-test-queue ENOENT" {
		t.Errorf("on the host: %s (%v)", out, err)
	}
}

func TestSharedMemoryIsPrivateAndOfTheSizeAsked(t *testing.T) {
	harness.Sh(t, "--shm-size", "12m", "echo x >/dev/shm/urun-test-shm; df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2").Says("12288")
	if _, err := os.Stat("/dev/shm/urun-test-shm"); !os.IsNotExist(err) {
		t.Errorf("the file is on the host: %v", err)
	}
}

func TestMountsDoNotLeakEitherWay(t *testing.T) {
	before := mounts(t)
	dir := t.TempDir()
	harness.Sh(t, "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "-v", dir+":/out",
		"mount -t tmpfs none /out && echo x >/out/file").OK()
	if _, err := os.Stat(filepath.Join(dir, "file")); !os.IsNotExist(err) {
		t.Errorf("a mount made inside shows outside: %v", err)
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts of the host before:\n%s\nafter:\n%s", before, after)
	}
	inside := harness.Run(t, "cat", "/proc/self/mountinfo").OK()
	for _, line := range strings.Split(inside, "\n") {
		f := strings.Fields(line)
		// A mount that still hears from the host's has a master; one that talks to it is shared.
		if strings.Contains(line, " shared:") || strings.Contains(line, " master:") {
			t.Errorf("mount at %s propagates: %s", f[4], line)
		}
		if strings.HasPrefix(f[4], "/old") || strings.Contains(f[4], "urun") {
			t.Errorf("a mount of the set-up is visible: %s", line)
		}
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDeathOfPidOneEndsAll(t *testing.T) {
	// Were the child still alive it would hold stdout, and the call would not end before it.
	harness.Run(t, "sh", "-c", "sleep 100 & echo gone").Says("gone")
}

func TestInitReapsOrphans(t *testing.T) {
	script := `(sleep 0.1 &); sleep 0.5; cat /proc/[0-9]*/stat | cut -d' ' -f2,3 | grep -c Z; echo $$`
	out := harness.Sh(t, "--init", script).OK()
	zombies, pid, _ := strings.Cut(out, "\n")
	if zombies != "0" {
		t.Errorf("%s zombies", zombies)
	}
	if pid == "1" {
		t.Error("with --init the command itself is pid 1")
	}
	harness.Sh(t, "--init", "exit 7").Exits(7)
	harness.Sh(t, "--init", "kill -TERM $$").Exits(143)
}

func TestNamespacesOfTheHostOnRequest(t *testing.T) {
	for flag, ns := range map[string]string{"--pid": "pid", "--ipc": "ipc", "--uts": "uts", "--network": "net"} {
		t.Run(flag, func(t *testing.T) {
			want, err := os.Readlink("/proc/self/ns/" + ns)
			if err != nil {
				t.Fatal(err)
			}
			harness.Run(t, flag+"=host", "--", "readlink", "/proc/self/ns/"+ns).Says(want)
		})
	}
}

func TestNamespacesOfAnotherContainer(t *testing.T) {
	name := detach(t, nil, "sleep", "1000")
	for flag, ns := range map[string]string{"--pid": "pid", "--ipc": "ipc", "--uts": "uts", "--network": "net"} {
		t.Run(flag, func(t *testing.T) {
			own := harness.Run(t, "readlink", "/proc/self/ns/"+ns).OK()
			first := harness.Run(t, flag+"=container:"+name, "--", "readlink", "/proc/self/ns/"+ns).OK()
			second := harness.Run(t, flag+"=container:"+name, "--", "readlink", "/proc/self/ns/"+ns).OK()
			if first != second || first == own {
				t.Errorf("%s and %s, a fresh one is %s", first, second, own)
			}
		})
	}
	harness.Run(t, "--pid=container:"+name, "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").Has("sleep 1000")
	harness.Run(t, "--network=container:nobody-has-this-name", "--", "true").Refused("nobody-has-this-name")
}

func TestNetworkIsLoopbackAndOneInterface(t *testing.T) {
	harness.Run(t, "--network=none", "--", "ls", "/sys/class/net").Says("lo")
	links := strings.Fields(harness.Run(t, "ls", "/sys/class/net").OK())
	if len(links) != 2 {
		t.Errorf("links: %v, want lo and one more", links)
	}
	harness.Sh(t, "--network=none", "/probe echo 127.0.0.1:7 & while ! /probe connect 127.0.0.1:7 hi 2>/dev/null; do sleep 0.05; done").Has("hi echoed")
}

func TestOwnCgroupRoot(t *testing.T) {
	for _, line := range strings.Split(harness.Run(t, "cat", "/proc/self/cgroup").OK(), "\n") {
		if !strings.HasSuffix(line, ":/") {
			t.Errorf("cgroup path of the host shows: %s", line)
		}
	}
}

func TestHostFilesAreOutOfSight(t *testing.T) {
	harness.Sh(t, "ls -d "+harness.Binary+" /home/* /proc/1/root/.. 2>/dev/null | grep -v /proc/1/root/..; true").Says("")
	harness.Sh(t, "cd /../../.. && ls -d etc && pwd").Says("etc\n/")
}
