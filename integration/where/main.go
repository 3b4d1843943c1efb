// Where finds out where urun runs: it makes containers as docker makes them, with some of their protections lifted, runs urun
// and Debian's podman in each as several users, and writes the table of docs/where-it-runs.md.
//
//	where [-out FILE] [-users NAME,NAME] [-v]
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
	"strings"
	"time"
)

func main() {
	out := flag.String("out", "docs/where-it-runs.md", "`file` whose table is rewritten")
	users := flag.String("users", "urun-test,urun-test1", "users of this machine, the first `with,without` subordinate ids")
	verbose := flag.Bool("v", false, "show what was said in each cell")
	flag.Parse()
	if err := where(*out, *users, *verbose); err != nil {
		fmt.Fprintf(os.Stderr, "where: %v\n", err)
		os.Exit(1)
	}
}

func where(out, users string, verbose bool) (err error) {
	if os.Getuid() != 0 {
		return errors.New("it needs root, to make containers as docker's daemon does")
	}
	rootfs, err := tree()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "urun-where-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	image := filepath.Join(work, "image")
	if err := run("bin/demoimage", image); err != nil {
		return err
	}
	binary, err := filepath.Abs("bin/urun")
	if err != nil {
		return err
	}
	script := filepath.Join(work, "job.sh")
	if err := os.WriteFile(script, []byte(job), 0o755); err != nil {
		return err
	}
	var rows []row
	for _, f := range fixtures() {
		for _, who := range people() {
			c := cell{fixture: f, who: who, work: work, rootfs: rootfs, binds: map[string]string{
				"/usr/local/bin/urun": binary, "/image": image, "/job.sh": script,
			}}
			r, err := c.examine()
			if err != nil {
				return fmt.Errorf("%s, %s: %w", f.name, who.words, err)
			}
			if err := say(r, verbose); err != nil {
				return err
			}
			rows = append(rows, r)
		}
	}
	here, err := hostRows(work, image, binary, script, users, verbose)
	if err != nil {
		return err
	}
	return report(out, append(here, rows...))
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
	local name=$1 out status
	shift
	out=$(timeout 60 "$@" 2>/tmp/err </dev/null)
	status=$?
	printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$(printf %s "$out" | base64 -w0)" "$(grep -v -e '^pulling' -e '^layer' /tmp/err | base64 -w0)"
}
export HOME=${JOB_HOME:-/home/$USER} XDG_RUNTIME_DIR=${JOB_RUN:-/tmp/run-$USER} URUN_LINGER=0s
mkdir -p -m 700 "$HOME" "$XDG_RUNTIME_DIR"
image=oci:${JOB_IMAGE:-/image}:latest
attempt run urun run --rm $JOB_FLAGS $image sh -c 'echo works as $(id -u)'
attempt detached bash -c "urun run -d --name job $JOB_FLAGS $image sh -c 'echo up; exec sleep 100' >/dev/null && "'until urun logs job | grep -q up; do sleep .1; done; echo works'
attempt exec urun exec job sh -c 'echo works as $(id -u)'
attempt rm bash -c 'urun rm -f job >/dev/null && [ -z "$(urun ps -aq)" ] && echo works'
attempt doctor urun doctor --json
[ -z "$JOB_FLAGS" ] || exit 0
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
	Run, Detached, Exec, Rm attempt
	Doctor, Podman          attempt
}

// read takes what the job said.
func (r *row) read(out string) error {
	into := map[string]*attempt{"run": &r.Run, "detached": &r.Detached, "exec": &r.Exec, "rm": &r.Rm, "doctor": &r.Doctor, "podman": &r.Podman}
	if r.Flags != "" {
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

func (c cell) examine() (r row, err error) {
	dir, err := os.MkdirTemp(c.work, "bundle-")
	if err != nil {
		return r, err
	}
	if err := c.fixture.bundle(dir, c.rootfs, c.who, c.binds, "/job.sh"); err != nil {
		return r, err
	}
	// crun 1.8 refuses hybrid cgroups: it sees a cgroup2 of its own, in a mount namespace of its own.
	id := fmt.Sprintf("urun-where-%d", time.Now().UnixNano())
	cmd := exec.Command("unshare", "--mount", "sh", "-ec",
		`mount -t cgroup2 none /sys/fs/cgroup; exec crun --root "$1" --cgroup-manager=disabled run --bundle "$2" "$3"`, "sh", filepath.Join(c.work, "crun"), dir, id)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return r, fmt.Errorf("crun: %w: %s", err, stderr.String())
	}
	r = row{Words: c.fixture.words, Who: c.who.words}
	if err := r.read(string(out)); err != nil {
		return r, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return r, nil
}

// tree is a Debian root directory with what the job needs, made once.
func tree() (string, error) {
	const include = "uidmap,podman,crun,slirp4netns,fuse-overlayfs,ca-certificates"
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "urun-test", "where-1")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp := dir + ".tmp"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(filepath.Dir(dir), 0o755)); err != nil {
		return "", err
	}
	fmt.Println("making a Debian tree, kept for later runs")
	if err := run("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include="+include,
		"--customize-hook=chroot \"$1\" useradd --no-create-home --uid 1000 job",
		"--customize-hook=chroot \"$1\" useradd --no-create-home --uid 1001 job1",
		"--customize-hook=printf 'job:100000:65536\\n' >\"$1/etc/subuid\"",
		"--customize-hook=printf 'job:100000:65536\\n' >\"$1/etc/subgid\"",
		"--customize-hook=touch \"$1/usr/local/bin/urun\" \"$1/job.sh\"; mkdir \"$1/image\"; chmod 755 \"$1\"",
		"bookworm", tmp); err != nil {
		return "", err
	}
	return dir, os.Rename(tmp, dir)
}

func run(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
