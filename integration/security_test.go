package integration

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

func TestDefaultCapabilities(t *testing.T) {
	const docker = "00000000a80425fb"
	caps := func(flags ...string) map[string]string {
		out := harness.Run(t, append(flags, "--", "grep", "^Cap", "/proc/self/status")...).OK()
		sets := map[string]string{}
		for _, line := range strings.Split(out, "\n") {
			name, value, _ := strings.Cut(line, ":")
			sets[name] = strings.TrimSpace(value)
		}
		return sets
	}
	got := caps()
	if got["CapEff"] != docker || got["CapBnd"] != docker || got["CapPrm"] != docker {
		t.Errorf("default: %v", got)
	}
	if got["CapAmb"] != "0000000000000000" || got["CapInh"] != "0000000000000000" {
		t.Errorf("ambient or inheritable capabilities: %v", got)
	}
	if got := caps("--cap-drop", "ALL")["CapEff"]; got != "0000000000000000" {
		t.Errorf("--cap-drop ALL: %s", got)
	}
	if got := caps("--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "cap_net_admin")["CapBnd"]; got != "0000000000001001" {
		t.Errorf("CHOWN and NET_ADMIN: %s", got)
	}
	if got := caps("--privileged")["CapBnd"]; got < "000001ffffffffff" {
		t.Errorf("--privileged: %s", got)
	}
	if harness.Ranges(t) {
		if got := caps("-u", "user"); got["CapEff"] != "0000000000000000" || got["CapBnd"] != docker {
			t.Errorf("as an ordinary user: %v", got)
		}
	}
}

func TestSystemCallsThatTheProfileDenies(t *testing.T) {
	denied := []string{
		"unshare-user", "unshare-net", "mount", "umount", "pivot_root", "open_tree", "fsopen", "setns", "keyctl", "add_key", "request_key",
		"bpf", "perf", "kexec", "init_module", "reboot", "swapon", "settime", "io_uring", "userfaultfd", "mknod-block", "sethostname", "vsock",
	}
	out := harness.Run(t, append([]string{"/probe", "try"}, denied...)...).OK()
	for _, line := range strings.Split(out, "\n") {
		name, errno, _ := strings.Cut(line, " ")
		// moby's profile answers EPERM, or ENOSYS where programs then fall back to an older call.
		if errno != "EPERM" && errno != "ENOSYS" && !(name == "vsock" && errno == "EAFNOSUPPORT") {
			t.Errorf("%s: %s", name, errno)
		}
	}
	// glibc falls back from clone3 to clone on ENOSYS alone.
	harness.Run(t, "/probe", "try", "clone3").Says("clone3 ENOSYS")
	harness.Run(t, "/probe", "try", "getpid", "chown").Has("getpid OK")
	harness.Run(t, "--cap-add", "SYS_ADMIN", "--", "/probe", "try", "mount", "unshare-net").Says("mount OK\nunshare-net OK")
}

func TestSeccompModes(t *testing.T) {
	harness.Run(t, "grep", "^Seccomp:", "/proc/self/status").Says("Seccomp:\t2")
	// Emulated ids have a filter of their own, which denies nothing.
	harness.Run(t, "--root-emulation=off", "--security-opt", "seccomp=unconfined", "--", "grep", "^Seccomp:", "/proc/self/status").Says("Seccomp:\t0")
	harness.Run(t, "--security-opt", "seccomp=unconfined", "--", "/probe", "try", "unshare-user").Says("unshare-user OK")
	harness.Run(t, "--root-emulation=off", "--privileged", "--", "grep", "^Seccomp:", "/proc/self/status").Says("Seccomp:\t0")

	profile := map[string]any{
		"defaultAction": "SCMP_ACT_ALLOW",
		"syscalls": []map[string]any{
			{"names": []string{"mkdir", "mkdirat"}, "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
		},
	}
	data, err := json.Marshal(profile)
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, filepath.Join(t.TempDir(), "profile.json"), string(data))
	harness.Sh(t, "--security-opt", "seccomp="+file, "mkdir /x 2>&1 || touch /y").Has("No space left on device")
	bad := write(t, filepath.Join(t.TempDir(), "bad.json"), `{"defaultAction":"SCMP_ACT_NOSUCH"}`)
	harness.Run(t, "--security-opt", "seccomp="+bad, "--", "true").Refused("SCMP_ACT_NOSUCH")
}

func TestNoNewPrivileges(t *testing.T) {
	harness.Run(t, "--security-opt", "no-new-privileges", "--", "grep", "^NoNewPrivs:", "/proc/self/status").Says("NoNewPrivs:\t1")
	harness.Run(t, "grep", "^NoNewPrivs:", "/proc/self/status").Says("NoNewPrivs:\t0")
}

func TestMaskedAndReadOnlyPaths(t *testing.T) {
	harness.Sh(t, `for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats; do
		if test -e $f; then head -c 1 $f 2>/dev/null | wc -c; fi; done | sort -u`).Says("0")
	harness.Sh(t, `for d in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do test -d $d && ls -A $d; done; true`).Says("")
	out := harness.Run(t, "/probe", "kernel-file", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
		"/proc/sys/vm/drop_caches", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/kernel/hostname").OK()
	if strings.Contains(out, "WRITABLE") {
		t.Errorf("%s", out)
	}
	for _, line := range strings.Split(harness.Run(t, "cat", "/proc/self/mountinfo").OK(), "\n") {
		f := strings.Fields(line)
		switch f[4] {
		case "/sys", "/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger", "/sys/fs/cgroup":
			if !strings.HasPrefix(f[5], "ro,") {
				t.Errorf("writable: %s", line)
			}
		}
	}
	harness.Sh(t, "--privileged", "head -c 1 /proc/kcore 2>&1 | wc -c; grep -c ' /proc/kcore ' /proc/self/mountinfo; true").Has("0")
}

// Descriptors of the runtime or of its caller must not reach the command: one of a host directory is a way out
// (CVE-2024-21626), and so is a working directory that names one.
func TestCVE202421626LeakedDescriptors(t *testing.T) {
	leak, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	out := harness.RunLeaking(t, []*os.File{leak}, harness.RunArgs("/probe", "fds")...).OK()
	for _, line := range strings.Split(out, "\n") {
		if n, _, _ := strings.Cut(line, " "); n != "0" && n != "1" && n != "2" {
			t.Errorf("descriptor %s", line)
		}
	}
	for fd := 3; fd < 20; fd++ {
		dir := fmt.Sprintf("/proc/self/fd/%d", fd)
		r := harness.RunLeaking(t, []*os.File{leak}, harness.RunArgs("-w", dir, "--", "ls", "-d", "/proc/self/cwd/"+strings.TrimPrefix(harness.Binary, "/"))...)
		if r.Code == 0 {
			t.Fatalf("%s\nthe host's files are reached through %s", r, dir)
		}
	}
	// The same by a symbolic link of the image.
	layout := cveImage(t, symlink("workdir", "/proc/self/fd/7"))
	if r := harness.Urun(t, "run", "--rm", "-w", "/workdir", layout, "ls", "/proc/self/cwd/work", "/proc/self/cwd/root"); r.Code == 0 {
		t.Errorf("%s", r)
	}
}

// The runtime's own executable must stay as it was, whoever holds it open inside (CVE-2019-5736). The test's copy of
// urun belongs to the user, so that nothing but urun's own care keeps root inside from writing to it.
func TestCVE20195736ExecutableIsNotOverwritable(t *testing.T) {
	own := filepath.Join(t.TempDir(), "urun")
	data, err := os.ReadFile(harness.Binary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, data, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func(saved string) { harness.Binary = saved }(harness.Binary)
	harness.Binary = own
	intact := func() {
		t.Helper()
		now, err := os.ReadFile(own)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(now) != sha256.Sum256(data) {
			t.Fatal("the executable was overwritten from inside")
		}
	}

	// The command is the runtime's own executable.
	for _, exe := range []string{"/proc/self/exe", "/proc/1/exe"} {
		harness.Run(t, "--entrypoint", exe, "--", "version")
		intact()
	}
	script := cveImage(t, file("entry", "#!/proc/self/exe\n", 0o755), symlink("link", "/proc/self/exe"))
	for _, entry := range []string{"/entry", "/link"} {
		harness.Urun(t, "run", "--rm", script, entry)
		intact()
	}
	// pid 1 is urun itself.
	out := harness.Run(t, "--init", "--", "/probe", "overwrite", "1").OK()
	if strings.Contains(out, "OVERWROTE") {
		t.Errorf("%s", out)
	}
	intact()
	// exec enters with urun's executable for a moment.
	name := detach(t, nil, "/probe", "overwrite", "4")
	for range 10 {
		harness.Urun(t, "exec", name, "true")
	}
	harness.Urun(t, "wait", name).OK()
	if logs := harness.Urun(t, "logs", name).OK(); strings.Contains(logs, "OVERWROTE") {
		t.Errorf("%s", logs)
	}
	intact()
}

// Targets of the runtime's mounts that the image has made symbolic links: a mask must cover the path itself or the
// start must fail; nothing may be mounted or written elsewhere (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).
func TestCVE202531133DevNullIsALink(t *testing.T) {
	ref := cveImage(t, symlink("dev/null", "/proc/sys/kernel/core_pattern"), symlink("dev/zero", "/proc/sysrq-trigger"))
	r := harness.Urun(t, "run", "--rm", ref, "sh", "-c", `stat -c %t:%T /dev/null /dev/zero; head -c 1 /proc/kcore | wc -c
		/probe kernel-file /proc/sys/kernel/core_pattern /proc/sysrq-trigger`)
	if r.Code == 0 && (strings.Contains(r.Stdout, "WRITABLE") || !strings.HasPrefix(r.Stdout, "1:3\n1:5\n0\n")) {
		t.Errorf("%s", r)
	}
}

func TestCVE202552565ConsoleIsALink(t *testing.T) {
	ref := cveImage(t, symlink("dev/console", "/proc/sys/kernel/core_pattern"), symlink("dev/pts", "/proc"), symlink("dev/ptmx", "/proc/sysrq-trigger"))
	term := openTerminal(t, "run", "--rm", "-it", ref, "sh", "-c",
		"/probe kernel-file /proc/sys/kernel/core_pattern /proc/sysrq-trigger; grep -c ' /proc/sys/kernel/core_pattern ' /proc/self/mountinfo; echo end")
	code := term.status()
	<-term.eof
	out := term.seen()
	if strings.Contains(out, "WRITABLE") || (code == 0 && !strings.Contains(out, "\n0\nend")) {
		t.Errorf("status %d: %q", code, out)
	}
}

func TestCVE202552881ProcfsIsALink(t *testing.T) {
	dir := t.TempDir()
	// /proc, /sys and /dev themselves are links of the image; then directories between a link and the target.
	for _, parts := range [][]entry{
		{symlink("proc", "/tmp/fake"), dirEntry("tmp/fake")},
		{symlink("sys", "/tmp/fake"), dirEntry("tmp/fake")},
		{symlink("dev", "/tmp/fake"), dirEntry("tmp/fake")},
		{symlink("dev/shm", "/proc/sys"), symlink("dev/mqueue", "/proc")},
		{symlink("etc/resolv.conf", "/proc/sys/kernel/core_pattern"), symlink("etc/hosts", "/../../../../../.."+dir+"/hosts"), symlink("etc/hostname", "/proc/self/attr/exec")},
	} {
		ref := cveImage(t, parts...)
		r := harness.Urun(t, "run", "--rm", "--sysctl", "net.ipv4.ip_unprivileged_port_start=81", ref, "sh", "-c",
			"stat -f -c %T /proc; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; /probe kernel-file /proc/sys/kernel/core_pattern; ls /tmp")
		if r.Code == 0 && (!strings.HasPrefix(r.Stdout, "proc\n81\n") || strings.Contains(r.Stdout, "WRITABLE")) {
			t.Errorf("%s", r)
		}
		if r.Code != 0 && r.Code != 125 {
			t.Errorf("%s\nwant it to run or to be refused", r)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Fatalf("written on the host: %v %v", entries, err)
		}
	}
}

func TestVolumeTargetsStayInside(t *testing.T) {
	outside, data := t.TempDir(), t.TempDir()
	ref := cveImage(t, symlink("escape", "/../../../../.."+outside), symlink("up", "../../../../../../../.."+outside))
	for _, target := range []string{"/escape/in", "/up/in", "/../../../../.." + outside + "/in"} {
		r := harness.Urun(t, "run", "--rm", "-v", data+":"+target, ref, "true")
		if r.Code != 0 && r.Code != 125 {
			t.Errorf("%s", r)
		}
		if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
			t.Fatalf("mount target made on the host: %v %v", entries, err)
		}
	}
}
