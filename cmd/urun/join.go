package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/batch"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// ranksLabel has, in a container of ranks, a digest of the flags that it was made by.
const ranksLabel = "urun.ranks"

// join runs the command as one of the ranks that share a container. The process becomes the command: for
// the launcher it is the one that it has started.
func (r *RunCmd) join(app *App, opts spec.Options) error {
	// What a thread is bound to, and who becomes the command, is this one's.
	runtime.LockOSThread()
	if err := r.checkJoin(&opts); err != nil {
		return err
	}
	st, err := state.Open(app.stateRoot())
	if err != nil {
		return err
	}
	name, err := r.groupName()
	if err != nil {
		return err
	}
	if r.JoinPID != 0 {
		if name, err = containerOf(st, r.JoinPID); err != nil {
			return err
		}
	}
	opts.PID, opts.Remove, opts.Detach = "host", true, false
	p, err := app.prepare(&r.RunFlags, opts, false)
	if err != nil {
		return err
	}
	defer p.done()
	flags, err := digestOf(opts)
	if err != nil {
		return err
	}
	place, err := r.place(app, st, name, flags, p)
	if err != nil {
		return err
	}
	c := p.plan.Container
	return place.Become(c.Spec.Process, c.KeepGroups, c.PreserveFDs)
}

func (r *RunCmd) checkJoin(o *spec.Options) error {
	for _, c := range []struct {
		is   bool
		what string
	}{
		{o.Detach, "-d"},
		{o.TTY, "-t"},
		{o.Init, "--init"},
		{o.Name != "", "--name"},
		{o.CIDFile != "", "--cidfile"},
		{o.Replace, "--replace"},
		{o.Restart != "" && o.Restart != "no", "--restart"},
		{o.HealthCmd != nil, "--health-cmd"},
	} {
		if c.is {
			return &hintError{fmt.Errorf("--join and %s exclude each other", c.what), "a rank is a process of its launcher, in a container that several share"}
		}
	}
	if o.PID != "" && o.PID != "host" {
		return &hintError{fmt.Errorf("--join and --pid %s exclude each other", o.PID), "ranks have the pids that their launcher knows: leave out --pid"}
	}
	if o.RootEmulation == "on" {
		return &hintError{errors.New("--join and --root-emulation=on exclude each other"), "ranks are who their launcher has started: leave out --root-emulation"}
	}
	if r.JoinCT < 0 {
		return fmt.Errorf("--join-ct %d: must be the number of ranks on this node", r.JoinCT)
	}
	return nil
}

// groupName is the name of the container of this rank's group, of all machines that use the store.
func (r *RunCmd) groupName() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("--join: %w", err)
	}
	tag := cmp.Or(r.JoinTag, batch.Group(os.Getenv))
	if tag == "" {
		// Without a launcher that we know, ranks have their parent in common.
		parent, err := state.ProcessOf(os.Getppid())
		if err != nil {
			return "", &hintError{fmt.Errorf("--join: %w", err), "name the group of ranks with --join-tag"}
		}
		tag = fmt.Sprint("parent ", parent.PID, parent.Start)
	}
	sum := sha256.Sum256(fmt.Append(nil, string(boot), os.Getuid(), " ", tag))
	return "ranks-" + hex.EncodeToString(sum[:8]), nil
}

// containerOf finds the container that a process is in, by its mount namespace.
func containerOf(st *state.Store, pid int) (string, error) {
	mounts, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return "", fmt.Errorf("--join-pid %d: %w", pid, err)
	}
	all, err := st.List()
	if err != nil {
		return "", err
	}
	for _, rec := range all {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", rec.Init.PID))
		if rec.Status == state.Running && err == nil && theirs == mounts {
			return rec.ID, nil
		}
	}
	return "", fmt.Errorf("--join-pid %d: the process is in no container of this store", pid)
}

// digestOf digests the flags that concern what ranks share.
func digestOf(o spec.Options) (string, error) {
	o.Args, o.Env, o.EnvFiles, o.Workdir, o.Entrypoint, o.PreserveFDs, o.Interactive, o.Quiet, o.SigProxy = nil, nil, nil, "", nil, nil, false, false, nil
	raw, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("--join: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8]), nil
}

// place takes a place in the container name; whoever comes first makes it.
func (r *RunCmd) place(app *App, st *state.Store, name, flags string, p *prepared) (*launch.Place, error) {
	for {
		place, err := r.joinRunning(st, name, flags)
		if !errors.Is(err, handoff.ErrNobody) {
			return place, err
		}
		if r.JoinPID != 0 {
			return nil, fmt.Errorf("--join-pid %d: %w", r.JoinPID, err)
		}
		release, err := holder.Exclusive(app.stateRoot(), name)
		if err != nil {
			return nil, err
		}
		// Another may have made it meanwhile.
		if place, err = r.joinRunning(st, name, flags); errors.Is(err, handoff.ErrNobody) {
			err = r.makeShared(app, name, flags, p)
			if err == nil {
				place, err = r.joinRunning(st, name, flags)
			}
		}
		if err = errors.Join(err, release()); err == nil || !errors.Is(err, handoff.ErrNobody) {
			return place, err
		}
	}
}

// joinRunning takes a place if the container runs; else the error wraps handoff.ErrNobody.
func (r *RunCmd) joinRunning(st *state.Store, name, flags string) (*launch.Place, error) {
	rec, err := st.Find(name)
	if errors.Is(err, state.ErrNotFound) || err == nil && rec.Status != state.Running {
		return nil, handoff.ErrNobody
	}
	if err != nil {
		return nil, err
	}
	if made := rec.Labels[ranksLabel]; r.JoinPID == 0 && made != flags {
		return nil, &hintError{
			errors.New("--join: another rank has made the container by other flags"),
			"give all ranks the same, but for the command and its environment, or groups of them a --join-tag each",
		}
	}
	return launch.Join(st.Dir(rec.ID))
}

// makeShared makes the container and waits until it runs.
func (r *RunCmd) makeShared(app *App, name, flags string, p *prepared) error {
	// What ranks share is bound to none of their CPUs.
	bound, err := unbind()
	if err != nil {
		return err
	}
	plan := p.plan
	c := *plan.Container
	c.Name, c.Log.Driver = name, "none"
	c.Labels = map[string]string{ranksLabel: flags}
	plan.Container, plan.Ranks = &c, &monitor.Ranks{Count: cmp.Or(r.JoinCT, batch.LocalRanks(os.Getenv))}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	terms := launch.Terms{Stdio: [3]*os.File{null, null, null}, Detach: true}
	session, err := launch.Run(plan, terms, launch.Begin(app.holder(plan.Map), nil))
	if err != nil {
		return err
	}
	exited, err := session.AwaitStart()
	if err != nil {
		return err
	}
	if exited != nil {
		return fmt.Errorf("--join: the container ended at its start: %s", exited.Error)
	}
	notices(app, &c, session)
	return errors.Join(session.Leave(), unix.SchedSetaffinity(0, bound))
}

// unbind lets all threads of this process run on every CPU that its cpuset has. It returns what the calling one was
// bound to.
func unbind() (*unix.CPUSet, error) {
	var before, all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, fmt.Errorf("affinity: %w", err)
	}
	for i := range len(all) * 64 {
		all.Set(i)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, fmt.Errorf("affinity: %w", err)
	}
	for _, t := range threads {
		var tid int
		if _, err := fmt.Sscan(t.Name(), &tid); err != nil {
			return nil, fmt.Errorf("affinity: %w", err)
		}
		if err := unix.SchedSetaffinity(tid, &all); err != nil && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("affinity: %w", err)
		}
	}
	return &before, nil
}
