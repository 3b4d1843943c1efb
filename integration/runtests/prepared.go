package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urun-dev/urun/integration/artifact"
)

// planned is a line of a plan: tests of one package, chosen by a regular expression, as one user.
type planned struct{ user, pkg, run string }

func readPlan(name string) ([]planned, error) {
	rows, err := readRows(name, "USER PACKAGE REGEXP")
	var all []planned
	for _, r := range rows {
		all = append(all, planned{r[0], r[1], r[2]})
	}
	return all, err
}

// environment is where a prepared directory says which images it has.
const environment = "environment"

// prepareStage puts into a directory all that the tests of a plan need.
func (o options) prepareStage() error {
	plan, err := readPlan(o.plan)
	if err != nil {
		return err
	}
	st := &stage{dir: o.prepare}
	if err := st.fill(); err != nil {
		return err
	}
	if err := st.images(strings.Split(o.images, ",")...); err != nil {
		return err
	}
	done := map[string]bool{}
	for _, p := range plan {
		if done[p.pkg] {
			continue
		}
		done[p.pkg] = true
		if _, err := st.compile(testPackage{rel: p.pkg}); err != nil {
			return err
		}
	}
	if _, err := artifact.Output("go", "build", "-buildvcs=false", "-trimpath", "-o", st.bin("runtests"), "./integration/runtests"); err != nil {
		return err
	}
	// The directory has another name where it is used.
	env := strings.ReplaceAll(strings.Join(st.env, "\n"), st.dir+"/", "")
	return os.WriteFile(filepath.Join(st.dir, environment), []byte(env), 0o644)
}

// testPrepared runs a plan, or with -run those tests of its packages that match, as all users.
func (o options) testPrepared() (ok bool, err error) {
	start := time.Now()
	plan, err := readPlan(o.plan)
	if err != nil {
		return false, err
	}
	skips, err := readSkips(filepath.Join(o.prepared, "src/integration/expected-skips.txt"))
	if err != nil {
		return false, err
	}
	accounts, err := testAccounts(o.users)
	if err != nil {
		return false, err
	}
	st := &stage{dir: o.prepared, accounts: accounts}
	if st.homes, err = os.MkdirTemp("/tmp", "urun-test-"); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, removeTree(st.homes)) }()
	if err := errors.Join(os.Chmod(st.homes, 0o755), st.makeHomes()); err != nil {
		return false, err
	}
	images, err := os.ReadFile(filepath.Join(st.dir, environment))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(images)) {
		name, dir, _ := strings.Cut(strings.TrimSpace(line), "=")
		st.env = append(st.env, name+"="+filepath.Join(st.dir, dir))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	r := runner{ctx: ctx, stage: st, skips: skips, ci: os.Getenv("CI") == "true"}
	packages := map[string]bool{}
	for _, p := range plan {
		if o.run != "" {
			p.run = o.run
		}
		i := slices.IndexFunc(accounts, func(a *account) bool { return a.name == p.user })
		if i < 0 {
			return false, fmt.Errorf("%s: no user %s", o.plan, p.user)
		}
		packages[p.pkg] = true
		r.test(testPackage{importPath: p.pkg, rel: p.pkg}, st.tests(p.pkg), pass{kind: "host-" + p.user, as: accounts[i], login: true, run: p.run})
	}
	return r.verdict(len(packages), start), nil
}
