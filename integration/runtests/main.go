// Runtests compiles the module's tests once, as whoever calls it, and runs them as unprivileged users.
//
//	runtests [-run REGEXP] [-users NAME,...] [-keep] PACKAGES...
//	runtests -prepare DIR -plan FILE
//	runtests -prepared DIR -plan FILE -users NAME,... [-run REGEXP]
//
// Called by root it makes two users if they are not there: urun-test, with ranges of subordinate ids, runs everything;
// urun-test1, without, runs the packages below integration/ again. Called by a user it runs everything as that user.
// A skipped test is named with its reason; with CI=true a skip that integration/expected-skips.txt does not list fails.
//
// The second and third forms are for the virtual host (integration/host): the one makes, outside, a directory with all
// that the tests of a plan need; the other runs them, inside, where there is no Go.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urun-dev/urun/integration/artifact"
	"github.com/urun-dev/urun/integration/harness"
)

func main() {
	var o options
	flag.StringVar(&o.run, "run", "", "only the tests whose name matches this `regexp`")
	flag.StringVar(&o.users, "users", "", "run as these `users`, separated by commas, instead of the test users (root only)")
	flag.BoolVar(&o.keep, "keep", false, "leave the working directory for inspection")
	flag.StringVar(&o.plan, "plan", "", "a `file` of lines USER PACKAGE REGEXP: what to run in the virtual host")
	flag.StringVar(&o.prepare, "prepare", "", "put all that the plan's tests need into a `directory`, and run nothing")
	flag.StringVar(&o.images, "images", "debian", "the `images` that the plan's tests need, separated by commas: debian, tools, nine")
	flag.StringVar(&o.prepared, "prepared", "", "the `directory` that -prepare made")
	flag.Parse()
	o.packages = flag.Args()
	ok, err := o.do()
	if err != nil {
		fmt.Fprintf(os.Stderr, "runtests: %v\n", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

type options struct {
	run, users              string
	keep                    bool
	plan, prepare, prepared string
	images                  string
	packages                []string
}

func (o options) do() (ok bool, err error) {
	planned := o.plan != ""
	switch {
	case planned && o.prepare != "" && o.prepared == "" && len(o.packages) == 0:
		return true, o.prepareStage()
	case planned && o.prepared != "" && o.prepare == "" && o.users != "" && len(o.packages) == 0:
		return o.testPrepared()
	case planned || o.prepare != "" || o.prepared != "" || len(o.packages) == 0:
		return false, errors.New("usage: runtests [-run REGEXP] [-users NAME,...] [-keep] PACKAGE, one or more")
	}
	return o.testAll()
}

func (o options) testAll() (ok bool, err error) {
	start := time.Now()
	skips, err := readSkips("integration/expected-skips.txt")
	if err != nil {
		return false, err
	}
	accounts, err := testAccounts(o.users)
	if err != nil {
		return false, err
	}
	st, err := newStage(accounts)
	if err != nil {
		return false, err
	}
	if o.keep {
		fmt.Println("working directory:", st.dir)
	} else {
		defer func() { err = errors.Join(err, removeTree(st.dir)) }()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	pkgs, err := listTests(o.packages)
	if err != nil {
		return false, err
	}
	if err := st.fill(); err != nil {
		return false, err
	}
	if slices.ContainsFunc(pkgs, func(p testPackage) bool { return p.rel == "integration" }) {
		if err := st.images("debian", "tools", "nine"); err != nil {
			return false, err
		}
	}

	if os.Getenv("URUN_FS_STRESS") != "" {
		if err := st.images("stress"); err != nil {
			return false, err
		}
	}

	r := runner{ctx: ctx, stage: st, skips: skips, ci: os.Getenv("CI") == "true"}
	for _, p := range pkgs {
		bin, err := st.compile(p)
		if err != nil {
			fmt.Print(err)
			fmt.Printf("FAIL\t%s [build failed]\n", p.importPath)
			r.failed++
			continue
		}
		switch {
		case p.needsGo:
			r.test(p, bin, pass{kind: "caller", run: o.run})
		case within(p.rel, "integration"):
			for _, a := range accounts {
				r.test(p, bin, pass{kind: a.kind(), as: a, run: o.run})
			}
		default:
			r.test(p, bin, pass{kind: accounts[0].kind(), as: accounts[0], run: o.run})
		}
		if o.run == "" && os.Getuid() == 0 {
			for _, more := range rootPasses(p.rel, accounts[0]) {
				r.test(p, bin, more)
			}
		}
	}
	return r.verdict(len(pkgs), start), nil
}

// verdict says how it all went, and whether that is well.
func (r *runner) verdict(packages int, start time.Time) bool {
	names := make([]string, len(r.stage.accounts))
	for i, a := range r.stage.accounts {
		names[i] = a.String()
		if left := a.left(r.stage); len(left) > 0 {
			fmt.Printf("FAIL\tprocesses left by %s:\n    %s\n", a, strings.Join(left, "\n    "))
			r.failed++
		}
	}
	verdict := "ok"
	if r.failed > 0 || r.passed == 0 {
		verdict = "FAIL"
	}
	fmt.Printf("%s\t%d packages, %d tests passed, %d skipped, %d failures, as %s, in %s\n", verdict, packages, r.passed, r.skipped,
		r.failed, strings.Join(names, " and "), time.Since(start).Round(time.Second))
	return verdict == "ok"
}

func within(p, root string) bool { return p == root || strings.HasPrefix(p, root+"/") }

// testPackage is a package that has tests.
type testPackage struct {
	importPath string
	rel        string // its directory, from the module's root
	needsGo    bool   // its tests call the go command on the sources: run by the caller
}

func listTests(patterns []string) ([]testPackage, error) {
	args := append([]string{"list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}"}, patterns...)
	out, err := artifact.Output("go", args...)
	if err != nil {
		return nil, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	var pkgs []testPackage
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		name, dir, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		rel, err := filepath.Rel(wd, dir)
		if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, testPackage{importPath: name, rel: rel, needsGo: rel == "internal/archtest"})
	}
	if len(pkgs) == 0 {
		return nil, fmt.Errorf("no package with tests in %s", strings.Join(patterns, " "))
	}
	return pkgs, nil
}

// stage is a directory that the users under test can read, and where each has a home of its own.
type stage struct {
	dir      string
	homes    string // where the accounts' homes are; dir, unless that is read-only
	accounts []*account
	env      []string // where the images are
}

func newStage(accounts []*account) (*stage, error) {
	// Short: unix socket paths end at 108 bytes.
	dir, err := os.MkdirTemp("/tmp", "urun-test-")
	if err != nil {
		return nil, err
	}
	st := &stage{dir: dir, homes: dir, accounts: accounts}
	if err := errors.Join(os.Chmod(dir, 0o755), st.makeHomes()); err != nil {
		return nil, errors.Join(err, removeTree(dir))
	}
	return st, nil
}

func (st *stage) makeHomes() error {
	for _, a := range st.accounts {
		a.home = filepath.Join(st.homes, a.name)
		for _, d := range []string{a.home, filepath.Join(a.home, "tmp")} {
			if err := errors.Join(os.Mkdir(d, 0o755), os.Chown(d, int(a.uid), int(a.gid))); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeTree deletes a directory. Root may meet directories that a user made unreadable, a user may not: both are opened first.
func removeTree(dir string) error {
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(p, 0o700)
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(dir))
}

// fill copies the sources, which tests may read as data, and builds what all tests share.
func (st *stage) fill() error {
	list, err := artifact.Output("git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard")
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimRight(list, "\x00"), "\x00") {
		if err := copyFile(name, filepath.Join(st.dir, "src", name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := copyFile("bin/urun", st.bin("urun")); err != nil {
		return err
	}
	for _, prog := range []string{"probe", "demoimage", "hardfs"} {
		if _, err := artifact.Output("go", "build", "-buildvcs=false", "-trimpath", "-o", st.bin(prog), "./integration/"+prog); err != nil {
			return err
		}
	}
	_, err = artifact.Output(st.bin("demoimage"), "-probe", st.bin("probe"), filepath.Join(st.dir, "demo"))
	return err
}

func (st *stage) bin(name string) string { return filepath.Join(st.dir, "bin", name) }

// tests is the path of a package's compiled tests.
func (st *stage) tests(rel string) string { return st.bin(strings.ReplaceAll(rel, "/", "-") + ".test") }

func (st *stage) compile(p testPackage) (string, error) {
	bin := st.tests(p.rel)
	_, err := artifact.Output("go", "test", "-c", "-buildvcs=false", "-o", bin, "./"+p.rel)
	return bin, err
}

// runner counts what the tests say.
type runner struct {
	ctx                     context.Context
	stage                   *stage
	skips                   []skip
	ci                      bool
	passed, skipped, failed int
}

// pass is one way to run a package's tests.
type pass struct {
	kind    string   // what expected-skips.txt calls it
	as      *account // nil: the caller
	systemd bool     // under a systemd in namespaces, made by root
	login   bool     // in a login session of the virtual host
	staged  *account // the caller gets this one's environment
	run     string   // only tests that match; "" is all
}

// rootPasses are what root can add for a package to what users ran: tests that skip for want of it.
func rootPasses(rel string, a *account) []pass {
	switch rel {
	case "cgdelegate":
		return []pass{{kind: "systemd", as: a, systemd: true, run: "^TestReal"}}
	case "integration", "integration/where":
		return []pass{{kind: "root", staged: a, run: "ByRoot$"}}
	case "fuseunion":
		return []pass{{kind: "root", run: "^TestTreesEqualWhatUmociUnpacks$"}}
	}
	return nil
}

func (p pass) String() string {
	switch {
	case p.as == nil:
		return p.kind
	case p.systemd:
		return p.as.name + ", under systemd"
	}
	return p.as.String()
}

// command makes the call of a package's compiled tests.
func (r *runner) command(p testPackage, bin string, how pass) *exec.Cmd {
	args := []string{"-test.v", "-test.timeout=" + harness.Patience(20*time.Minute).String()}
	if how.run != "" {
		args = append(args, "-test.run="+how.run)
	}
	cmd := exec.CommandContext(r.ctx, bin, args...)
	cmd.Dir = filepath.Join(r.stage.dir, "src", p.rel)
	switch {
	case how.staged != nil:
		cmd.Env = how.staged.env(r.stage)
	case how.as == nil:
		cmd.Dir = p.rel // where go list works
	case how.systemd:
		script := filepath.Join(r.stage.dir, "src/integration/systemd-ns.sh")
		env := append([]string{"--user", how.as.name, "env"}, how.as.env(r.stage)...)
		cmd = exec.CommandContext(r.ctx, script, append(append(env, bin), args...)...)
		cmd.Dir = filepath.Join(r.stage.dir, "src", p.rel)
	case how.login:
		// as-user adds what a login would, and env has the last word.
		words := append([]string{how.as.name, "env"}, how.as.env(r.stage)...)
		cmd = exec.CommandContext(r.ctx, "as-user", append(append(words, bin), args...)...)
		cmd.Dir = filepath.Join(r.stage.dir, "src", p.rel)
	default:
		cmd.Env = how.as.env(r.stage)
		cmd.SysProcAttr = how.as.credential()
	}
	return cmd
}

// notHere is systemd-ns.sh's status for a machine that lacks something, which its last line names.
const notHere = 77

// test runs the compiled tests of one package in one way.
func (r *runner) test(p testPackage, bin string, how pass) {
	cmd := r.command(p, bin, how)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if os.Getenv("URUN_TEST_VERBOSE") != "" {
		cmd.Stdout = io.MultiWriter(&log, os.Stdout)
		cmd.Stderr = cmd.Stdout
	}
	cmd.WaitDelay = 10 * time.Second
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)

	res := parse(log.Bytes())
	if how.systemd && cmd.ProcessState.ExitCode() == notHere {
		all := strings.Split(strings.TrimSpace(log.String()), "\n")
		res.skipped, err = append(res.skipped, skipped{"all", all[len(all)-1]}), nil
	}
	r.passed += res.passed
	r.skipped += len(res.skipped)
	var why []string
	if err != nil {
		why = append(why, err.Error())
	}
	if res.passed+len(res.skipped) == 0 && how.run == "" {
		why = append(why, "no test ran")
	}
	for _, s := range res.skipped {
		if r.ci && !r.expected(p, how.kind, s) {
			why = append(why, "unexpected skip of "+s.test)
		}
	}
	if len(why) > 0 {
		r.failed++
		if os.Getenv("URUN_TEST_VERBOSE") == "" {
			_, _ = os.Stdout.Write(log.Bytes())
		}
		fmt.Printf("FAIL\t%s\t%.2fs\t(%s: %s)\n", p.importPath, took.Seconds(), how, strings.Join(why, "; "))
	} else {
		fmt.Printf("ok  \t%s\t%.2fs\t(%s: %d passed, %d skipped)\n", p.importPath, took.Seconds(), how, res.passed, len(res.skipped))
	}
	for _, s := range res.skipped {
		fmt.Printf("    skipped %s: %s\n", s.test, s.reason)
	}
}

// copyFile copies a file or a symbolic link, making what is above it.
func copyFile(from, to string) error {
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if fi.Mode()&os.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644|fi.Mode()&0o111)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o644|fi.Mode().Perm()&0o111), out.Close())
}
