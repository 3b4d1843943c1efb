package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEnvironment(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "env"), "# comment\nFROM_FILE=a b\n\nOVER=file\n")
	t.Setenv("FROM_HOST", "taken")
	t.Setenv("NOT_ASKED", "secret")
	out := harness.Run(t, "-e", "A=1 2", "-e", "FROM_HOST", "-e", "OVER=flag", "--env-file", file, "--", "env").OK()
	env := map[string]string{}
	for _, line := range strings.Split(out, "\n") {
		k, v, _ := strings.Cut(line, "=")
		env[k] = v
	}
	for k, want := range map[string]string{
		"A": "1 2", "FROM_HOST": "taken", "FROM_FILE": "a b", "OVER": "flag", "URUN_DEMO": "1", "PATH": "/usr/bin:/bin", "HOME": "/root",
	} {
		if env[k] != want {
			t.Errorf("%s is %q, want %q", k, env[k], want)
		}
	}
	if _, ok := env["NOT_ASKED"]; ok || env["HOSTNAME"] == "" {
		t.Errorf("environment:\n%s", out)
	}
	for k := range env {
		if strings.HasPrefix(k, "URUN_") && k != "URUN_DEMO" {
			t.Errorf("urun's own %s leaks", k)
		}
	}
}

func TestWorkingDirectory(t *testing.T) {
	harness.Run(t, "-w", "/demo", "--", "pwd").Says("/demo")
	harness.Run(t, "-w", "/made/up/by/urun", "--", "pwd").Says("/made/up/by/urun")
}

func TestUser(t *testing.T) {
	if !harness.Ranges(t) {
		// With one id there is nobody but root, and the error says so, or the others are emulated.
		harness.Run(t, "--root-emulation", "off", "-u", "1000", "--", "id").Refused("subuid")
	}
	for flag, want := range map[string]string{
		"user":      "uid=1000(user) gid=1000(user) groups=1000(user),50(staff)",
		"1000":      "uid=1000(user) gid=1000(user) groups=1000(user),50(staff)",
		"user:1":    "uid=1000(user) gid=1(daemon) groups=1(daemon)",
		"1000:1234": "uid=1000(user) gid=1234 groups=1234",
		"4242":      "uid=4242 gid=0(root) groups=0(root)",
		"0:0":       "uid=0(root) gid=0(root) groups=0(root)",
	} {
		t.Run(flag, func(t *testing.T) { harness.Run(t, "-u", flag, "--", "id").Says(want) })
	}
	harness.Run(t, "-u", "user", "--group-add", "daemon", "--group-add", "77", "--", "id", "-G").Has("1000", "77", "1")
	harness.Run(t, "-u", "nosuchuser", "--", "id").Refused("nosuchuser")
	harness.Run(t, "-u", "user", "--", "sh", "-c", "echo $HOME; cat /demo/owned").Says("/home\nof user 1000, group 50")
	if harness.Ranges(t) {
		harness.Sh(t, "-u", "nobody", "cat /demo/owned 2>&1; true").Has("Permission denied")
	}
}

func TestEntrypoint(t *testing.T) {
	harness.Run(t, "--entrypoint", "echo", "--", "a", "b c").Says("a b c")
	harness.Run(t, "--entrypoint", "/usr/bin/id", "--", "-u").Says("0")
}

func TestBinds(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "file"), "host\n")
	if err := os.Mkdir(filepath.Join(dir, "sub dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	harness.Sh(t, "-v", dir+":/data", "cat /data/file; echo more >>/data/file").Says("host")
	if data, err := os.ReadFile(file); err != nil || string(data) != "host\nmore\n" {
		t.Errorf("%q %v", data, err)
	}
	harness.Sh(t, "-v", dir+":/data:ro", "echo x >/data/file || echo refused; cat /data/file").Has("refused")
	harness.Sh(t, "-v", file+":/etc/one-file", "cat /etc/one-file").Has("host")
	harness.Run(t, "--mount", "type=bind,source="+dir+",target=/data,readonly", "--", "sh", "-c", "touch /data/x || cat /data/file").Has("host")
	harness.Run(t, "--mount", "type=bind,source="+filepath.Join(dir, "nothing")+",target=/data", "--", "true").Refused("nothing")
	harness.Run(t, "-v", dir+":/data:nosuchoption", "--", "true").Refused("nosuchoption")
	harness.Run(t, "-v", "relative/path:/data", "--", "true").Exits(125)
	harness.Run(t, "-v", dir+":not/absolute", "--", "true").Refused("not/absolute")
}

func TestNamedVolumesKeepWhatIsWritten(t *testing.T) {
	name := unique(t)
	harness.Sh(t, "-v", name+":/demo", "cat /demo/kept; echo mine >/demo/kept").Says("from layer 3") // filled from the image
	harness.Sh(t, "-v", name+":/elsewhere", "cat /elsewhere/kept").Says("mine")
	harness.Sh(t, "cat /demo/kept").Says("from layer 3")
}

func TestTmpfs(t *testing.T) {
	harness.Sh(t, "--tmpfs", "/scratch:size=4m,mode=1750", "df -k /scratch | tail -n 1 | tr -s ' ' | cut -d' ' -f1,2; stat -c %a /scratch").
		Says("tmpfs 4096\n1750")
	harness.Run(t, "--mount", "type=tmpfs,target=/scratch", "--", "sh", "-c", "echo x >/scratch/x && cat /scratch/x").Says("x")
}

func TestReadOnly(t *testing.T) {
	harness.Sh(t, "--read-only", "--tmpfs", "/tmp", "echo x >/demo/x || echo refused; echo y >/tmp/y && cat /tmp/y").Says("refused\ny")
}

func TestWritesStayInTheirContainer(t *testing.T) {
	harness.Sh(t, "rm /demo/kept; echo new >/demo/new; mv /demo/opaque /demo/moved; ls /demo; ls /demo/moved").
		Says("moved\nnew\nowned\nreplaced\nnew")
	harness.Sh(t, "ls /demo; cat /demo/kept").Says("kept\nopaque\nowned\nreplaced\nfrom layer 3")
}

func TestLayersAreMerged(t *testing.T) {
	harness.Sh(t, "cat /demo/kept /demo/replaced; ls /demo/opaque; test ! -e /demo/deleted; stat -c '%a %u:%g %Y' /demo/owned").
		Has("from layer 3\nfrom layer 4\nnew\n640 ", " 1715947200")
	if harness.Ranges(t) {
		harness.Run(t, "stat", "-c", "%u:%g", "/demo/owned").Says("1000:50")
	}
}

func TestUlimits(t *testing.T) {
	harness.Sh(t, "--ulimit", "nofile=200:300", "ulimit -n; ulimit -Hn").Says("200\n300")
	harness.Sh(t, "--ulimit", "core=0", "ulimit -c").Says("0")
	harness.Run(t, "--ulimit", "nosuch=1", "--", "true").Refused("nosuch")
}

func TestHostsAndNameServers(t *testing.T) {
	harness.Run(t, "--add-host", "db:10.9.8.7", "--", "grep", "db", "/etc/hosts").Has("10.9.8.7")
	harness.Run(t, "--network=host", "--dns", "192.0.2.53", "--", "cat", "/etc/resolv.conf").Has("nameserver 192.0.2.53")
	harness.Run(t, "--add-host", "nonsense", "--", "true").Exits(125)
}

func TestSysctls(t *testing.T) {
	harness.Run(t, "--sysctl", "net.ipv4.ip_unprivileged_port_start=81", "--", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start").Says("81")
	harness.Run(t, "--sysctl", "kernel.msgmax=12345", "--", "cat", "/proc/sys/kernel/msgmax").Says("12345")
	harness.Run(t, "--sysctl", "kernel.panic=1", "--", "true").Refused("kernel.panic")
	harness.Run(t, "--network=host", "--sysctl", "net.ipv4.ip_forward=1", "--", "true").Refused("net.ipv4.ip_forward")
}

func TestTimezone(t *testing.T) {
	if _, err := os.Stat("/usr/share/zoneinfo/Asia/Tokyo"); err != nil {
		t.Skip("no time zones: apt-get install tzdata")
	}
	harness.Run(t, "--timezone", "Asia/Tokyo", "--", "date", "+%z").Says("+0900")
	harness.Run(t, "--timezone", "Mars/Olympus", "--", "true").Refused("Mars/Olympus")
}

func TestDevices(t *testing.T) {
	names := harness.Run(t, "ls", "/dev").OK()
	for _, want := range []string{"fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"} {
		if !strings.Contains("\n"+names+"\n", "\n"+want+"\n") {
			t.Errorf("no /dev/%s in %q", want, names)
		}
	}
	for _, line := range strings.Fields(names) {
		if strings.HasPrefix(line, "vd") || strings.HasPrefix(line, "sd") || line == "kmsg" || line == "mem" {
			t.Errorf("/dev/%s of the host shows", line)
		}
	}
	harness.Sh(t, "echo x >/dev/null; head -c 4 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c").Has("00 00 00 00", "8")
	harness.Sh(t, "--device", "/dev/fuse", "test -c /dev/fuse && stat -c '%t:%T' /dev/fuse").Says("a:e5")
	harness.Run(t, "--device", "/dev/nosuchdevice", "--", "true").Refused("/dev/nosuchdevice")
}

func TestKeepID(t *testing.T) {
	harness.Run(t, "--userns=keep-id", "--", "id", "-u").Says(fmt.Sprint(os.Getuid()))
	dir := t.TempDir()
	harness.Sh(t, "--userns=keep-id", "-v", dir+":/out", "stat -c %u /out; echo x >/out/x").Says(fmt.Sprint(os.Getuid()))
	fi, err := os.Stat(filepath.Join(dir, "x"))
	if err != nil {
		t.Fatal(err)
	}
	if ownerOf(fi) != os.Getuid() {
		t.Errorf("owner outside is %d", ownerOf(fi))
	}
	if harness.Ranges(t) {
		harness.Run(t, "--userns=keep-id", "--", "stat", "-c", "%u %g", "/", "/demo/owned").Says("0 0\n1000 50")
		harness.Run(t, "--userns=keep-id", "-u", "0", "--", "sh", "-c", "echo x >/demo/kept && id -u").Says("0")
	}
}

func TestConflictingFlagsAreErrors(t *testing.T) {
	for _, c := range [][]string{
		{"--network=host", "-p", "8080:80"},
		{"--network=none", "-p", "8080:80"},
		{"--uts=host", "--hostname", "x"},
		{"--memory", "1m", "--memory-swap", "512k"},
		{"--memory", "lots"},
		{"--cpus", "-1"},
		{"-p", "notaport"},
		{"-p", "8080:99999"},
		{"--pull", "sometimes"},
		{"--security-opt", "nosuchoption=1"},
		{"--security-opt", "seccomp=/no/such/profile"},
		{"--cap-add", "CAP_NOSUCH"},
		{"--ulimit", "nofile=300:200"},
		{"--stop-signal", "SIGNOSUCH"},
		{"--userns=martian"},
		{"--mount", "type=teleport,target=/x"},
		{"--tmpfs", "relative"},
		{"--name", "-bad name-"},
		{"--platform", "linux/nosucharch"},
	} {
		t.Run(strings.Join(c, " "), func(t *testing.T) {
			harness.Run(t, append(c, "--", "true")...).Exits(125)
		})
	}
}

// A limit that cannot be enforced is refused with its cause: never ignored. Where it can be, it must show.
func TestLimitsAreEnforcedOrRefused(t *testing.T) {
	for flag, value := range map[string]string{"--memory": "64m", "--cpus": "0.5", "--pids-limit": "50", "--cpu-shares": "100"} {
		t.Run(flag, func(t *testing.T) {
			r := harness.Run(t, flag, value, "--", "cat", "/proc/self/cgroup")
			if r.Code == 0 {
				t.Logf("enforced in %s", r.Stdout)
				return
			}
			r.Refused("cgroup")
			if !strings.Contains(r.Stderr, "hint:") {
				t.Errorf("%s\nwant a hint", r)
			}
		})
	}
	harness.Run(t, "--pids-limit=-1", "--", "true").OK() // unlimited asks for nothing
}

func TestLabelsAndAnnotations(t *testing.T) {
	name := detach(t, []string{"--label", "who=me", "--annotation", "org.example.x=y"}, "sleep", "1000")
	harness.Urun(t, "inspect", name).Has(`"who": "me"`, `"org.example.x": "y"`)
}
