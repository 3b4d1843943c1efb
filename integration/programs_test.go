package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// toolsImage gives the name, in the store, of a Debian image of nine layers with git, python3, Go, npm and PostgreSQL.
// The longer time is for its programs.
func toolsImage(t *testing.T) string {
	t.Helper()
	layout := prepared(t, "URUN_TOOLS_IMAGE", "image with programs", "mmdebstrap needs the package mirror, and root or subordinate ids")
	defer func(short time.Duration) { t.Cleanup(func() { harness.Timeout = short }) }(harness.Timeout)
	harness.Timeout = 5 * time.Minute
	ref := "oci:" + layout + ":latest"
	id := harness.Urun(t, "pull", "--quiet", ref).OK()
	harness.Urun(t, "tag", id, "localhost/tools:latest").OK()
	return "localhost/tools:latest"
}

func script(lines ...string) []string { return []string{"sh", "-ec", strings.Join(lines, "\n")} }

// in runs a shell script in an image, with the flags before.
func in(t *testing.T, image string, flags []string, lines ...string) *harness.Result {
	t.Helper()
	args := append([]string{"run", "--rm"}, flags...)
	return harness.Urun(t, append(append(args, image), script(lines...)...)...)
}

func TestAptGetInstalls(t *testing.T) {
	layout := debianImage(t)
	c, err := net.DialTimeout("tcp", net.JoinHostPort(mirrorHost(t), "80"), 10*time.Second)
	if err != nil {
		t.Skipf("no package mirror: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	defer func(short time.Duration) { harness.Timeout = short }(harness.Timeout)
	harness.Timeout = 5 * time.Minute
	in(t, "oci:"+layout+":latest", nil,
		"apt-get -q update",
		"apt-get -q install -y --no-install-recommends hello cron openssh-server dbus",
		"hello", "stat -c %U:%G:%a /usr/bin/crontab", "dpkg --audit", "echo all configured").
		Has("Hello, world!", "root:crontab:2755", "all configured")
}

func TestGitClone(t *testing.T) {
	image := toolsImage(t)
	harness.Need(t, "git", "git")
	dir := t.TempDir()
	repo := filepath.Join(dir, "repo")
	cmd := exec.Command("sh", "-ec", `git init -q "$1"; cd "$1"; git config user.name t; git config user.email t@example.org
		for i in $(seq 200); do mkdir -p d$((i%20)); echo $i >d$((i%20))/f$i; done; ln -s d1/f1 link; git add .; git commit -qm first
		git clone -q --bare . ../repo.git; cd ../repo.git; git update-server-info`, "sh", repo)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer srv.Close()
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	// From a server of the host, then from one in the container itself.
	in(t, image, []string{"--network", toHost, "-w", "/srv"},
		"git clone -q http://10.0.2.2:"+port+"/repo.git",
		"cd repo && git status --short && git fsck && git log --oneline | wc -l && ls | wc -l",
		"cd .. && git clone -q --bare repo served.git && git -C served.git update-server-info",
		"python3 -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 &",
		"until git ls-remote -q http://127.0.0.1:8000/served.git >/dev/null 2>&1; do sleep 0.1; done",
		"git clone -q http://127.0.0.1:8000/served.git again && cat again/link").Says("1\n21\n1")
}

func TestPython(t *testing.T) {
	in(t, toolsImage(t), nil, `python3 - <<'END'
import multiprocessing, os, socket, sqlite3, subprocess, tempfile, threading
def square(x): return x * x
with multiprocessing.Pool(4) as pool: print(sum(pool.map(square, range(100))))
with tempfile.TemporaryDirectory() as d:
    db = sqlite3.connect(os.path.join(d, "db"))
    db.execute("pragma journal_mode=wal"); db.execute("create table t(x)")
    db.executemany("insert into t values(?)", [(i,) for i in range(1000)]); db.commit()
    print(db.execute("select sum(x) from t").fetchone()[0])
a, b = socket.socketpair(); a.send(b"pair"); print(b.recv(9).decode())
print(subprocess.run(["sh", "-c", "exit 7"]).returncode, os.getpid() > 0, multiprocessing.Lock() is not None)
END`).Says("328350\n499500\npair\n7 True True")
}

func TestGoBuilds(t *testing.T) {
	in(t, toolsImage(t), []string{"-w", "/src", "-e", "CGO_ENABLED=0", "-e", "GOFLAGS=-mod=mod"},
		`printf 'package main\nimport ("fmt"; "os")\nfunc main() { h, _ := os.Hostname(); fmt.Println("built and run", h != "") }\n' >main.go`,
		"go mod init example.org/x 2>/dev/null && go build -o x . && ./x").Says("built and run true")
}

func TestNpmInstalls(t *testing.T) {
	in(t, toolsImage(t), []string{"--network=none", "-w", "/app"},
		`mkdir /dep && echo '{"name":"dep","version":"1.2.3","main":"i.js"}' >/dep/package.json && echo 'module.exports=()=>42' >/dep/i.js`,
		"npm init -y >/dev/null && npm install --offline --no-audit --no-fund /dep >/dev/null",
		`node -e 'console.log(require("dep")(), require("dep/package.json").version)'`).Says("42 1.2.3")
}

func TestPostgreSQL(t *testing.T) {
	image := toolsImage(t)
	flags := []string{"-u", "postgres"}
	if !harness.Ranges(t) {
		// initdb refuses root; with one id there is one other way not to be root.
		flags = []string{"--userns=keep-id", "-e", "LC_ALL=C"}
	}
	in(t, image, flags,
		"export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)",
		"initdb -D /tmp/data >/tmp/init.log",
		"pg_ctl -D /tmp/data -l /tmp/server.log -o '-k /tmp' -w start >/dev/null || { cat /tmp/server.log; exit 1; }",
		"psql -qtA -h /tmp postgres -c 'create table t(x int); insert into t select generate_series(1,1000); select sum(x) from t'",
		"psql -qtA -h 127.0.0.1 postgres -c 'select count(*) from t'",
		"pg_ctl -D /tmp/data -w stop >/dev/null").Says("500500\n1000")
}

// Many small files, read, written, compared and removed: the union and the writable layer under real load.
func TestTarOfManyFiles(t *testing.T) {
	in(t, toolsImage(t), []string{"--network=none"},
		"tar -C /usr/share -cf - nodejs perl | tar -C /var/tmp -xf -",
		"cd /usr/share && diff -r --no-dereference nodejs /var/tmp/nodejs && diff -r perl /var/tmp/perl",
		"rm -rf nodejs perl && ls -d nodejs perl 2>/dev/null | wc -l").Says("0")
}

// The programs find the file limits and the machine that they expect.
func TestMachineAsSeenInside(t *testing.T) {
	harness.Run(t, "nproc").Says(strings.TrimSpace(string(mustOutput(t, "nproc"))))
	if n := harness.Sh(t, "ulimit -n").OK(); n == "0" {
		t.Errorf("ulimit -n: %s", n)
	}
	if _, err := os.Stat("/proc/meminfo"); err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "grep", "-c", "MemTotal", "/proc/meminfo").Says(fmt.Sprint(1))
}
