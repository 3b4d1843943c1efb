package fs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

const (
	envInside = "URUN_FSTEST_INSIDE" // the test's name, in the user namespace
	envServe  = "URUN_FSTEST_SERVE"  // a served, in a server process
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(envServe); spec != "" {
		if err := serve(spec); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// served is what a server process is to serve.
type served struct {
	Tree        string
	Data        []string
	Dir         string // a directory instead of a tree
	Upper, Work string // for a union
	Options     fuseunion.UnionOptions
	Readers     int
}

// serve is a server process: descriptor 3 is the device.
func serve(spec string) (err error) {
	var s served
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return err
	}
	unix.Umask(0)
	opt := fuseunion.ServeOptions{
		UIDs: mappedIDs("uid_map"), GIDs: mappedIDs("gid_map"), SquashUID: 0, SquashGID: 0, Readers: s.Readers,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	dev := os.NewFile(3, "fuse")
	var lower fuseunion.Lower
	if s.Dir != "" {
		d, err := fuseunion.OpenDir(s.Dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.Close()) }()
		lower = d
	} else {
		t, err := fuseunion.OpenTree(s.Tree, s.Data)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.Close()) }()
		if s.Upper == "" {
			return fuseunion.Serve(context.Background(), dev, t, opt)
		}
		lower = t
	}
	u, err := fuseunion.OpenUnion(lower, s.Upper, s.Work, s.Options)
	if err != nil {
		return err
	}
	return errors.Join(fuseunion.ServeUnion(context.Background(), dev, u, opt), u.Close())
}

func mappedIDs(file string) (ranges []fuseunion.IDRange) {
	b, err := os.ReadFile("/proc/self/" + file)
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(b)) {
		var r fuseunion.IDRange
		var outer uint32
		if _, err := fmt.Sscan(line, &r.First, &outer, &r.Count); err != nil {
			panic(err)
		}
		ranges = append(ranges, r)
	}
	return ranges
}

// manyIDs tells whether files can be given to others than root.
func manyIDs() bool {
	ids := mappedIDs("uid_map")
	return ids[len(ids)-1].First+ids[len(ids)-1].Count > 1000
}

// inNamespaces runs the calling test again in a new user and mount namespace, and
// reports whether this is that run.
func inNamespaces(t *testing.T, limit time.Duration) bool {
	t.Helper()
	if os.Getenv(envInside) == t.Name() {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	} else if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit+10*time.Second)
	defer cancel()
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=" + limit.String()}
	cmd := exec.CommandContext(ctx, self, args...)
	if hasSubIDs(t) {
		cmd = exec.CommandContext(ctx, "unshare", append([]string{"--user", "--map-root-user", "--map-auto", "--mount", "--kill-child", self}, args...)...)
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
	}
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(), envInside+"="+t.Name())
	out, err := cmd.CombinedOutput()
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Fatalf("inside the namespaces: %v", err)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skip("skipped inside the namespaces: see the log")
	}
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatal("nothing ran inside the namespaces")
	}
	return false
}

func hasSubIDs(t *testing.T) bool {
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/etc/subuid")
	if err != nil {
		return false
	}
	_, err = exec.LookPath("unshare")
	return err == nil && strings.Contains("\n"+string(b), "\n"+u.Username+":")
}
