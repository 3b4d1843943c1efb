package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/urun-dev/urun/integration/benchkit"
)

type options struct {
	Urun, Image    string
	Rounds         int
	Limits, Masked bool
}

// results are in milliseconds.
type results struct {
	Kernel   string
	Variants []variant
}

type variant struct {
	Name                               string
	With, Without, Ratio, Took, Waited float64
	args                               []string
}

// measure runs each way to have a cgroup in turn with having none.
func (o options) measure() (err error) {
	store, err := os.MkdirTemp("", "urun-limitbench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(store)) }()
	if err := os.Setenv("URUN_ROOT", store); err != nil {
		return err
	}
	id, err := exec.Command(o.Urun, "pull", "--quiet", "oci:"+o.Image+":latest").Output()
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	image := strings.TrimSpace(string(id))
	variants := []variant{
		{Name: "in the holder's scope", args: []string{"--cgroups=enforce"}},
		{Name: "in a scope of its own", args: []string{"--cgroups=enforce", "--cgroup-parent=bench.slice"}},
	}
	if o.Limits {
		variants = append(variants, variant{Name: "in the holder's scope, with limits", args: []string{"--memory=256m", "--cpus=2", "--pids-limit=1000"}})
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	r := results{Kernel: strings.TrimSpace(string(release))}
	for _, v := range variants {
		if err := o.compare(&v, image); err != nil {
			return err
		}
		r.Variants = append(r.Variants, v)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func (o options) compare(v *variant, image string) error {
	var with, without, ratios, taken, waited []float64
	for i := range o.Rounds + 2 {
		a, cgroup, err := o.start(image, v.args)
		if err != nil {
			return err
		}
		b, _, err := o.start(image, []string{"--cgroups=disabled"})
		if err != nil {
			return err
		}
		if i >= 2 { // the first make what the others share
			with, without, ratios = append(with, a), append(without, b), append(ratios, a/b)
			taken, waited = append(taken, cgroup.took), append(waited, cgroup.waited)
		}
	}
	v.With, v.Without, v.Ratio, v.Took, v.Waited = benchkit.Median(with), benchkit.Median(without), benchkit.Median(ratios), benchkit.Median(taken), benchkit.Median(waited)
	return nil
}

// times are what the log says of a container's cgroup, in milliseconds: how long it took, beside all else that a start
// does, and how long the start had nothing else to do.
type times struct{ took, waited float64 }

var cgroupTimes = regexp.MustCompile(`msg=cgroup took=(\S+) waited=(\S+)`)

// start takes the time of one container.
func (o options) start(image string, args []string) (whole float64, cgroup times, err error) {
	all := append([]string{"--debug", "run", "--rm"}, args...)
	if o.Masked {
		all = append(all, "--pid=host", "--network=host")
	}
	start := time.Now()
	out, err := exec.Command(o.Urun, append(all, image, "true")...).CombinedOutput()
	whole = milliseconds(time.Since(start))
	if err != nil {
		return 0, cgroup, fmt.Errorf("urun %s: %w\n%s", strings.Join(all, " "), err, out)
	}
	if m := cgroupTimes.FindSubmatch(out); m != nil {
		for i, into := range []*float64{&cgroup.took, &cgroup.waited} {
			d, err := time.ParseDuration(string(m[i+1]))
			if err != nil {
				return 0, cgroup, err
			}
			*into = milliseconds(d)
		}
	}
	return whole, cgroup, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
