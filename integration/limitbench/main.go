// Limitbench measures what a cgroup adds to the start of a container, in pairs with starts that have none: natively, under a
// systemd in namespaces (integration/systemd-ns.sh, which has no controllers), and with limits in the virtual host.
//
//	limitbench -out docs/benchmarks.md      as root: both, and writes the section
//	limitbench -measure -urun FILE ...      as a user, once: prints JSON
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/urun-dev/urun/integration/artifact"
	"github.com/urun-dev/urun/integration/benchkit"
)

// benchUser is who measures natively: runtests' user with subordinate ids.
const benchUser = "urun-test"

func main() {
	var o options
	out := flag.String("out", "", "the `file` whose section is rewritten")
	measure := flag.Bool("measure", false, "measure here and print JSON")
	flag.StringVar(&o.Urun, "urun", "", "the `binary` to measure")
	flag.StringVar(&o.Image, "image", "", "the OCI `layout` to run")
	flag.IntVar(&o.Rounds, "rounds", 25, "`number` of pairs")
	flag.BoolVar(&o.Limits, "limits", false, "there are controllers: set limits")
	flag.BoolVar(&o.Masked, "masked", false, "/proc is masked: share the host's pid and network namespaces")
	flag.Parse()
	var err error
	if *measure {
		err = o.measure()
	} else {
		err = report(*out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "limitbench:", err)
		os.Exit(1)
	}
}

func report(out string) error {
	if os.Getuid() != 0 {
		return errors.New("root is needed to start systemd in namespaces")
	}
	if _, err := user.Lookup(benchUser); err != nil {
		return fmt.Errorf("%w: make test makes that user", err)
	}
	dir, err := os.MkdirTemp("/tmp", "urun-limitbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := prepare(dir); err != nil {
		return err
	}
	bench := filepath.Join(dir, "bin/limitbench")
	native, err := run("integration/systemd-ns.sh", "--user", benchUser, bench, "-measure", "-masked",
		"-urun", filepath.Join(dir, "bin/urun"), "-image", filepath.Join(dir, "demo"))
	if err != nil {
		return err
	}
	virtual, err := run("bin/host", "-disk", dir, "-user", "alice", "-timeout", "6m", "run", "/urun/bin/limitbench",
		"-measure", "-limits", "-rounds", "10", "-urun", "/urun/bin/urun", "-image", "/urun/demo")
	if err != nil {
		return err
	}
	text := table(native, virtual)
	if out == "" {
		_, err := os.Stdout.WriteString(text)
		return err
	}
	return benchkit.Rewrite(out, "bench-limits", text)
}

// prepare puts what is measured where an ordinary user, and the virtual host, can read it.
func prepare(dir string) error {
	bin := filepath.Join(dir, "bin")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(bin, 0o755)); err != nil {
		return err
	}
	for _, prog := range []string{"limitbench", "probe", "demoimage"} {
		if _, err := artifact.Output("go", "build", "-buildvcs=false", "-trimpath", "-o", filepath.Join(bin, prog), "./integration/"+prog); err != nil {
			return err
		}
	}
	data, err := os.ReadFile("bin/urun")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bin, "urun"), data, 0o755); err != nil {
		return err
	}
	_, err = artifact.Output(filepath.Join(bin, "demoimage"), "-probe", filepath.Join(bin, "probe"), filepath.Join(dir, "demo"))
	return err
}

func run(name string, args ...string) (results, error) {
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var r results
	if err != nil {
		return r, fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return r, json.Unmarshal(out, &r)
}

func table(native, virtual results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Made by `make bench-limits` on %s: `run --rm IMAGE true`, warm, in pairs with `--cgroups=disabled`; medians of wall time.\n\n",
		time.Now().UTC().Format(time.DateOnly))
	b.WriteString("| where | cgroup | with | without | ratio of a pair | the cgroup took | of that the start waited |\n|---|---|---|---|---|---|---|\n")
	for _, where := range []struct {
		name string
		r    results
	}{{"native, Linux " + native.Kernel + ", systemd in namespaces", native}, {"virtual host, Linux " + virtual.Kernel + ", emulated", virtual}} {
		for _, v := range where.r.Variants {
			fmt.Fprintf(&b, "| %s | %s | %.1f ms | %.1f ms | **%.3f** | %.1f ms | %.1f ms |\n", where.name, v.Name, v.With, v.Without, v.Ratio, v.Took, v.Waited)
		}
	}
	return b.String()
}
