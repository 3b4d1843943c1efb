// Runtests compiles the module's tests once, as whoever calls it, and runs them as unprivileged users.
//
//	runtests [-run REGEXP] [-users NAME,...] [-keep] PACKAGES...
//
// Called by root it makes two users if they are not there: urun-test, with ranges of subordinate ids, runs everything;
// urun-test1, without, runs the packages below integration/ again. Called by a user it runs everything as that user.
// A skipped test is named with its reason; with CI=true a skip that integration/expected-skips.txt does not list fails.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	run := flag.String("run", "", "only the tests whose name matches this `regexp`")
	users := flag.String("users", "", "run as these `users`, separated by commas, instead of the test users (root only)")
	keep := flag.Bool("keep", false, "leave the working directory for inspection")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: runtests [-run REGEXP] [-users NAME,...] [-keep] PACKAGES...")
		os.Exit(2)
	}
	ok, err := testAll(*run, *users, *keep, flag.Args())
	if err != nil {
		fmt.Fprintf(os.Stderr, "runtests: %v\n", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

func testAll(run, users string, keep bool, patterns []string) (ok bool, err error) {
	start := time.Now()
	skips, err := readSkips("integration/expected-skips.txt")
	if err != nil {
		return false, err
	}
	accounts, err := testAccounts(users)
	if err != nil {
		return false, err
	}
	st, err := newStage(accounts)
	if err != nil {
		return false, err
	}
	if keep {
		fmt.Println("working directory:", st.dir)
	} else {
		defer func() { err = errors.Join(err, st.remove()) }()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	pkgs, err := listTests(patterns)
	if err != nil {
		return false, err
	}
	if err := st.fill(); err != nil {
		return false, err
	}
	if slices.ContainsFunc(pkgs, func(p testPackage) bool { return p.rel == "integration" }) {
		if err := st.images(); err != nil {
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
			r.test(p, bin, pass{kind: "caller", run: run})
		case within(p.rel, "integration"):
			for _, a := range accounts {
				r.test(p, bin, pass{kind: a.kind(), as: a, run: run})
			}
		default:
			r.test(p, bin, pass{kind: accounts[0].kind(), as: accounts[0], run: run})
		}
		if run == "" && os.Getuid() == 0 {
			for _, more := range rootPasses(p.rel, accounts[0]) {
				r.test(p, bin, more)
			}
		}
	}
	for _, a := range accounts {
		if left := a.processes(st); len(left) > 0 {
			fmt.Printf("FAIL\tprocesses left by %s:\n    %s\n", a, strings.Join(left, "\n    "))
			r.failed++
		}
	}
	names := make([]string, len(accounts))
	for i, a := range accounts {
		names[i] = a.String()
	}
	verdict := "ok"
	if r.failed > 0 || r.passed == 0 {
		verdict = "FAIL"
	}
	fmt.Printf("%s\t%d packages, %d tests passed, %d skipped, %d failures, as %s, in %s\n", verdict, len(pkgs), r.passed, r.skipped,
		r.failed, strings.Join(names, " and "), time.Since(start).Round(time.Second))
	return verdict == "ok", nil
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
	out, err := output("go", args...)
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
	accounts []*account
	env      []string // where the images are
}

func newStage(accounts []*account) (*stage, error) {
	// Short: unix socket paths end at 108 bytes.
	dir, err := os.MkdirTemp("/tmp", "urun-test-")
	if err != nil {
		return nil, err
	}
	st := &stage{dir: dir, accounts: accounts}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, st.remove())
	}
	for _, a := range accounts {
		a.home = filepath.Join(dir, a.name)
		for _, d := range []string{a.home, filepath.Join(a.home, "tmp")} {
			if err := errors.Join(os.Mkdir(d, 0o755), os.Chown(d, int(a.uid), int(a.gid))); err != nil {
				return nil, errors.Join(err, st.remove())
			}
		}
	}
	return st, nil
}

// remove deletes the stage. Root may meet directories that a user made unreadable, a user may not: both are opened first.
func (st *stage) remove() error {
	err := filepath.WalkDir(st.dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(p, 0o700)
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(st.dir))
}

// fill copies the sources, which tests may read as data, and builds what all tests share.
func (st *stage) fill() error {
	list, err := output("git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard")
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
	for _, prog := range []string{"probe", "demoimage"} {
		if _, err := output("go", "build", "-buildvcs=false", "-trimpath", "-o", st.bin(prog), "./integration/"+prog); err != nil {
			return err
		}
	}
	_, err = output(st.bin("demoimage"), "-probe", st.bin("probe"), filepath.Join(st.dir, "demo"))
	return err
}

func (st *stage) bin(name string) string { return filepath.Join(st.dir, "bin", name) }

func (st *stage) compile(p testPackage) (string, error) {
	bin := st.bin(strings.ReplaceAll(p.rel, "/", "-") + ".test")
	_, err := output("go", "test", "-c", "-buildvcs=false", "-o", bin, "./"+p.rel)
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
	run     string   // only tests that match; "" is all
}

// rootPasses are what root can add for a package to what users ran: tests that skip for want of it.
func rootPasses(rel string, a *account) []pass {
	switch rel {
	case "cgdelegate":
		return []pass{{kind: "systemd", as: a, systemd: true, run: "^TestReal"}}
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
	args := []string{"-test.v", "-test.timeout=10m"}
	if how.run != "" {
		args = append(args, "-test.run="+how.run)
	}
	cmd := exec.CommandContext(r.ctx, bin, args...)
	cmd.Dir = filepath.Join(r.stage.dir, "src", p.rel)
	switch {
	case how.as == nil:
		cmd.Dir = p.rel // where go list works
	case how.systemd:
		script := filepath.Join(r.stage.dir, "src/integration/systemd-ns.sh")
		env := append([]string{"--user", how.as.name, "env"}, how.as.env(r.stage)...)
		cmd = exec.CommandContext(r.ctx, script, append(append(env, bin), args...)...)
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

func (r *runner) expected(p testPackage, kind string, s skipped) bool {
	for _, e := range r.skips {
		account, _ := path.Match(e.account, kind)
		pkg, _ := path.Match(e.pkg, p.rel)
		test, _ := path.Match(e.test, s.test)
		if account && pkg && test {
			return true
		}
	}
	return false
}

// skip is a line of expected-skips.txt; its patterns are path.Match's.
type skip struct{ account, pkg, test string }

func readSkips(name string) ([]skip, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var skips []skip
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("%s:%d: want ACCOUNT PACKAGE TEST", name, n)
		}
		for _, pattern := range fields {
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, fmt.Errorf("%s:%d: %s: %w", name, n, pattern, err)
			}
		}
		skips = append(skips, skip{fields[0], fields[1], fields[2]})
	}
	return skips, sc.Err()
}

type skipped struct{ test, reason string }

type result struct {
	passed  int
	skipped []skipped
}

// parse counts the lines of the testing package's verbose form. A skip's reason is logged before its verdict, as
// "    file.go:1: reason", under the name of its test.
func parse(log []byte) (res result) {
	last := ""
	for line := range strings.Lines(string(log)) {
		text := strings.TrimSpace(line)
		switch name, ok := strings.CutPrefix(text, "--- "); {
		case ok && strings.HasPrefix(name, "PASS: "):
			res.passed++
		case ok && strings.HasPrefix(name, "SKIP: "):
			test, _, _ := strings.Cut(strings.TrimPrefix(name, "SKIP: "), " ")
			res.skipped = append(res.skipped, skipped{test, last})
		}
		if _, after, ok := strings.Cut(text, ".go:"); ok {
			if _, reason, ok := strings.Cut(after, ": "); ok {
				last = reason
			}
		}
	}
	return res
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return string(out), nil
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
