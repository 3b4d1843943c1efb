// Where finds out where urun runs: it makes containers as docker makes them, with some of their protections lifted, runs urun
// and Debian's podman in each as several users, and writes the table of docs/where-it-runs.md.
//
//	where [-out FILE] [-users NAME,NAME] [-only REGEXP] [-v]
//
// Of each job it tries run, exec, run -d and rm, and on this machine itself also each rung that an ordinary machine is not
// found to stand on, by --without. It needs root, Debian's crun, podman and mmdebstrap, and two users with homes, of whom the
// first has subordinate ids. Nothing of the machine is changed: crun runs in a private mount
// namespace with a cgroup2 of its own, and without cgroups.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/urun-dev/urun/integration/artifact"
)

func main() {
	out := flag.String("out", "docs/where-it-runs.md", "`file` whose table is rewritten")
	users := flag.String("users", "urun-test,urun-test1", "users of this machine, the first `with,without` subordinate ids")
	only := flag.String("only", "", "only rows whose job and user `match`, without writing the table")
	verbose := flag.Bool("v", false, "show what was said in each cell")
	flag.Parse()
	w := finder{out: *out, users: *users, verbose: *verbose}
	var err error
	if w.only, err = regexp.Compile(*only); err == nil {
		err = w.find()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "where: %v\n", err)
		os.Exit(1)
	}
}

// finder is one run of the program.
type finder struct {
	out, users string
	only       *regexp.Regexp
	verbose    bool
	work       string // a directory with what follows
	image      string
	binary     string
	script     string
	rows       []row
}

func (w *finder) find() (err error) {
	if os.Getuid() != 0 {
		return errors.New("it needs root, to make containers as docker's daemon does")
	}
	rootfs, err := tree()
	if err != nil {
		return err
	}
	if w.work, err = os.MkdirTemp("", "urun-where-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(w.work)) }()
	if err := w.prepare(); err != nil {
		return err
	}
	if err := w.hostRows(); err != nil {
		return err
	}
	for _, f := range fixtures() {
		for _, who := range people() {
			c := cell{fixture: f, who: who, work: w.work, rootfs: rootfs, binds: map[string]string{
				"/usr/local/bin/urun": w.binary, "/image": w.image, "/job.sh": w.script,
			}}
			if err := w.row(row{Words: f.words, Who: who.words, user: who.userName}, c.examine); err != nil {
				return err
			}
		}
	}
	if w.only.String() == "" {
		return report(w.out, w.rows)
	}
	for _, r := range w.rows {
		if _, err := r.doctor(); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes what each job gets.
func (w *finder) prepare() error {
	if err := os.Chmod(w.work, 0o755); err != nil {
		return err
	}
	w.image, w.script = filepath.Join(w.work, "image"), filepath.Join(w.work, "job.sh")
	if err := run("bin/demoimage", w.image); err != nil {
		return err
	}
	w.binary = filepath.Join(w.work, "urun") // which nobody builds anew meanwhile
	if err := run("cp", "bin/urun", w.binary); err != nil {
		return err
	}
	return os.WriteFile(w.script, []byte(job), 0o755)
}

// row adds a row, if it is wanted.
func (w *finder) row(r row, examine func(*row) error) error {
	if !w.only.MatchString(r.Words + ", " + r.Who) {
		return nil
	}
	if err := examine(&r); err != nil {
		return fmt.Errorf("%s, %s: %w", r.Words, r.Who, err)
	}
	w.rows = append(w.rows, r)
	return say(r, w.verbose)
}

// say shows how a row came out.
func say(r row, verbose bool) error {
	if !verbose {
		fmt.Printf("%s, %s: urun %s; podman %s\n", r.Words, r.Who, r.Run.verdict(), r.Podman.verdict())
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		fmt.Printf("%s\n", data)
	}
	return err
}

// job is what runs in each container. It prints one line of JSON a program.
const job = `#!/bin/bash
# Each attempt: exit status, what it printed, and its complaints.
attempt() { # NAME COMMAND...
	local name=$1 out status err=$HOME/complaints
	shift
	out=$(timeout 300 "$@" 2>"$err" </dev/null)
	status=$?
	printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$(printf %s "$out" | base64 -w0)" "$(grep -v -e '^pulling' -e '^layer' "$err" | base64 -w0)"
}
export HOME=${JOB_HOME:-/home/$USER} XDG_RUNTIME_DIR=${JOB_RUN:-/tmp/run-$USER} URUN_LINGER=0s
mkdir -p -m 700 "$HOME" "$XDG_RUNTIME_DIR"
export image=oci:${JOB_IMAGE:-/image}:latest
attempt run urun run --rm $JOB_FLAGS $image sh -c 'echo works as $(id -u)'
attempt detached bash -ec 'urun run -d --name job $JOB_FLAGS $image sh -c "echo up; exec sleep 1000" >/dev/null; until urun logs job | grep -q up; do sleep .1; done; echo works'
attempt exec urun exec job sh -c 'echo works as $(id -u)'
attempt rm bash -ec '[ -n "$(urun ps -q)" ]; urun rm -f job >/dev/null; [ -z "$(urun ps -aq)" ]; echo works'
attempt doctor urun doctor --json
[ -z "$JOB_ALONE" ] || exit 0
attempt podman podman run --rm $image sh -c 'echo works as $(id -u)'
`

// cell is one person in one fixture.
type cell struct {
	fixture      fixture
	who          person
	work, rootfs string
	binds        map[string]string
}

// attempt is how one program fared.
type attempt struct {
	Status      int
	Out, Errors string
}

type row struct {
	Words, Who, Flags       string
	user                    string
	alone                   bool // podman is not tried
	Run, Detached, Exec, Rm attempt
	Doctor, Podman          attempt
}

// read takes what the job said.
func (r *row) read(out string) error {
	into := map[string]*attempt{"run": &r.Run, "detached": &r.Detached, "exec": &r.Exec, "rm": &r.Rm, "doctor": &r.Doctor, "podman": &r.Podman}
	if r.alone {
		delete(into, "podman")
	}
	for line := range strings.Lines(out) {
		name, a, err := parseAttempt(line)
		if err != nil {
			return err
		}
		if into[name] == nil {
			return fmt.Errorf("unknown attempt %q", name)
		}
		*into[name] = a
		delete(into, name)
	}
	if len(into) > 0 {
		return fmt.Errorf("%d attempts were not made", len(into))
	}
	return nil
}

// ownCgroups mounts a cgroup2 of its own where the job looks for one: crun 1.8, podman's too, refuses hybrid cgroups.
const ownCgroups = "mount -t cgroup2 none /sys/fs/cgroup; "

func (c cell) examine(r *row) error {
	dir, err := os.MkdirTemp(c.work, "bundle-")
	if err != nil {
		return err
	}
	command := []string{"/job.sh"}
	if r.alone {
		command = []string{"env", "JOB_ALONE=1", "/job.sh"}
	}
	if err := c.fixture.bundle(dir, c.rootfs, c.who, c.binds, command...); err != nil {
		return err
	}
	id := fmt.Sprintf("urun-where-%d", time.Now().UnixNano())
	return r.job(exec.Command("unshare", "--mount", "sh", "-ec",
		ownCgroups+`exec crun --root "$1" --cgroup-manager=disabled run --bundle "$2" "$3"`, "sh", filepath.Join(c.work, "crun"), dir, id))
}

// job runs the command that runs the job, and reads what it said.
func (r *row) job(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		err = r.read(string(out))
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, stderr.String())
	}
	return nil
}

// tree is a Debian root directory with what the job needs, made once.
func tree() (string, error) {
	return artifact.DebianTree("where", "uidmap,podman,crun,slirp4netns,fuse-overlayfs,ca-certificates",
		`chroot "$1" useradd --no-create-home --uid 1000 job`,
		`chroot "$1" useradd --no-create-home --uid 1001 job1`,
		`printf 'job:100000:65536\n' >"$1/etc/subuid"`,
		`printf 'job:100000:65536\n' >"$1/etc/subgid"`,
		`touch "$1/usr/local/bin/urun" "$1/job.sh"; mkdir "$1/image"; chmod 755 "$1"`)
}

func run(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
