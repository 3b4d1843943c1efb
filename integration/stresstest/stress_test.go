// Package stresstest lets several urun processes do random things to the same few containers, while processes of urun
// are killed, and sees whether the store stays true.
package stresstest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const (
	workers = 8
	names   = 12
	// shortTime is for make test; URUN_STRESS asks for another, such as 2m.
	shortTime = 6 * time.Second
	callTime  = 60 * time.Second // two slow CPUs, eight workers
)

// commands are what workers do; weights by repetition.
var commands = []func(r *rand.Rand) []string{
	func(r *rand.Rand) []string {
		return []string{"create", "--name", name(r), harness.DemoImage, "sleep", "1000"}
	},
	func(r *rand.Rand) []string {
		return []string{"run", "-d", "--name", name(r), "--network", "none", harness.DemoImage, "sleep", "1000"}
	},
	func(r *rand.Rand) []string {
		return []string{"run", "-d", "--name", name(r), "-v", "/anonymous", harness.DemoImage, "sh", "-c", "echo line; sleep 0.2"}
	},
	func(r *rand.Rand) []string {
		return []string{"run", "-d", "--name", name(r), "--restart", "always", "--network", "none", harness.DemoImage, "sleep", "0.1"}
	},
	func(r *rand.Rand) []string {
		return []string{"run", "-d", "--replace", "--name", name(r), "--network", "none", harness.DemoImage, "sleep", "1000"}
	},
	func(r *rand.Rand) []string {
		return []string{"run", "--rm", "--name", name(r), "--network", "none", harness.DemoImage, "true"}
	},
	func(r *rand.Rand) []string { return []string{"start", name(r)} },
	func(r *rand.Rand) []string { return []string{"start", name(r)} },
	func(r *rand.Rand) []string { return []string{"stop", "-t", "0", name(r)} },
	func(r *rand.Rand) []string { return []string{"restart", "-t", "0", name(r)} },
	func(r *rand.Rand) []string { return []string{"kill", name(r)} },
	func(r *rand.Rand) []string { return []string{"rm", name(r)} },
	func(r *rand.Rand) []string { return []string{"rm", "-f", "-v", name(r)} },
	func(r *rand.Rand) []string { return []string{"rename", name(r), name(r)} },
	func(r *rand.Rand) []string { return []string{"exec", name(r), "true"} },
	func(r *rand.Rand) []string {
		return []string{"exec", name(r), "sh", "-c", "echo x > /tmp/x; cat /tmp/x"}
	},
	func(r *rand.Rand) []string { return []string{"logs", name(r)} },
	func(r *rand.Rand) []string { return []string{"ps", "-a"} },
	func(r *rand.Rand) []string { return []string{"inspect", name(r)} },
	func(r *rand.Rand) []string { return []string{"container", "prune", "-f"} },
}

func name(r *rand.Rand) string { return fmt.Sprintf("stress-%d", r.IntN(names)) }

// fair are the errors that somebody may get because others were faster.
var fair = regexp.MustCompile(`(?m)^(urun: (` + strings.Join([]string{
	`no such (container|object)`, `.*no such (container|object): `, `container stress-\d+ is running`, `container is not running`, `.*name is already in use`,
	`container is in use by another process`, `rename container: it has the name`, `exec: container stress-\d+ has ended`, `container stress-\d+ has no log`,
	// What a kill at the wrong moment comes to.
	`.*the container's monitor was killed`, `.*the image server ended: `, `.*the image server that containers share ended`, `.* ended at start: `, `.*send message .*: broken pipe`, `start container: .*EOF`,
}, "|") + `).*|hint: .*|)$`)

func TestEightAtOnceNeverCorruptTheStore(t *testing.T) {
	limit, long := shortTime, false
	if s := os.Getenv("URUN_STRESS"); s != "" {
		long = true // kills are for the long form: killtest has them one at a time
		var err error
		if limit, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("URUN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v, URUN_SEED=%d", limit, seed)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var wg sync.WaitGroup
	var calls, refused, kills atomic.Int64
	for w := range workers {
		r := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				calls.Add(1)
				if !do(t, commands[r.IntN(len(commands))](r)) {
					refused.Add(1)
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(seed, workers))
	wg.Go(func() {
		for long && ctx.Err() == nil {
			time.Sleep(time.Duration(200+r.IntN(400)) * time.Millisecond)
			kills.Add(killOne(t, r))
		}
	})
	wg.Wait()
	t.Logf("%d calls, %d refused, %d processes killed", calls.Load(), refused.Load(), kills.Load())
	checkTrue(t)
	checkEmpty(t)
}

// do calls urun and tells whether it succeeded. An error that is not fair ends the test.
func do(t *testing.T, args []string) bool {
	line := "urun " + strings.Join(args, " ")
	cmd := exec.Command(harness.Binary, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Errorf("%s: %v", line, err)
		return false
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-time.After(harness.Patience(callTime)):
		t.Errorf("%s: no end after %v\n%s", line, harness.Patience(callTime), stuck(cmd, &stderr, ended))
		_ = cmd.Process.Kill() // it may have ended by what stuck did
		return false
	}
	rest := strings.TrimSpace(fair.ReplaceAllString(stderr.String(), ""))
	if args[0] == "exec" && err != nil && stderr.Len() == 0 {
		return false // killed with its container
	}
	if rest != "" {
		said, _ := exec.Command(harness.Binary, "logs", args[len(args)-1]).CombinedOutput() // what else there is to know
		t.Errorf("%s: %v\n%s\nlog: %s", line, err, stderr.String(), said)
	}
	return err == nil
}

// killOne kills one of the processes of the containers in the store, as their records name them, or a helper.
func killOne(t *testing.T, r *rand.Rand) int64 {
	records, err := filepath.Glob(filepath.Join(harness.Store, "containers", "*", "state.json"))
	if err != nil {
		t.Error(err)
	}
	if len(records) == 0 {
		return 0
	}
	var rec struct{ Monitor, Init struct{ PID int } }
	raw, err := os.ReadFile(records[r.IntN(len(records))])
	if err != nil || json.Unmarshal(raw, &rec) != nil {
		return 0 // removed meanwhile
	}
	victim := rec.Monitor.PID
	switch r.IntN(3) {
	case 0:
		victim = rec.Init.PID
	case 1:
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", rec.Monitor.PID, rec.Monitor.PID))
		if f := strings.Fields(string(raw)); err == nil && len(f) > 0 {
			if victim, err = strconv.Atoi(f[r.IntN(len(f))]); err != nil {
				t.Error(err)
			}
		}
	}
	// A record may be old: its pids may be somebody else's by now.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", victim))
	if err != nil || victim == 0 || !bytes.HasPrefix(line, []byte("urun\x00__")) && !bytes.HasPrefix(line, []byte("sleep\x00")) {
		return 0
	}
	if err := unix.Kill(victim, unix.SIGKILL); err != nil {
		return 0
	}
	return 1
}

// checkTrue compares what ps says with what there is.
func checkTrue(t *testing.T) {
	t.Helper()
	// Those with a policy come and go: they are stopped first.
	harness.Timeout = callTime
	for _, id := range strings.Fields(harness.Urun(t, "ps", "-q", "--filter", "restart-policy=always").OK()) {
		harness.Urun(t, "stop", "-t", "0", id)
	}
	wrong := ""
	harness.Eventually(t, 20*time.Second, "ps is true", func() bool {
		wrong = ""
		for _, line := range strings.Split(harness.Urun(t, "ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.State}} {{.Names}}").OK(), "\n") {
			f := strings.Fields(line)
			if len(f) != 3 {
				continue
			}
			r := harness.Urun(t, "exec", f[0], "true")
			if up := f[1] == "running"; up != (r.Code == 0) {
				wrong = fmt.Sprintf("%s, but %s", line, r)
			}
			if !slices.Contains([]string{"running", "exited", "created"}, f[1]) {
				wrong = line
			}
		}
		return wrong == ""
	})
}

// checkEmpty removes everything and looks for what is left. The driver looks for processes.
func checkEmpty(t *testing.T) {
	t.Helper()
	harness.Urun(t, "rm", "-f", "-a", "-v").OK()
	harness.Urun(t, "volume", "prune", "-f").OK() // rm without -v leaves anonymous ones, as docker does
	for _, dir := range []string{"containers", "names", "volumes"} {
		left, err := os.ReadDir(filepath.Join(harness.Store, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("%s has %v", dir, left)
		}
	}
}
