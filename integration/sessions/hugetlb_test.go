package sessions

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// batch is a cgroup that somebody else than systemd delegates, as a batch system does for a job.
const batch = "/sys/fs/cgroup/batch"

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// delegate makes batch, with controllers, and in it the leaf "step"; both are the user's.
func delegate(t *testing.T, uid int, controllers string) {
	t.Helper()
	write(t, "/sys/fs/cgroup/cgroup.subtree_control", controllers)
	step := filepath.Join(batch, "step")
	if err := os.MkdirAll(step, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// What urun makes goes with its containers; a holder stays in the leaf for some time.
		harness.Eventually(t, patience, "the cgroup runs empty", func() bool {
			leaves, err := filepath.Glob(batch + "/*")
			if err != nil {
				t.Fatal(err)
			}
			for _, leaf := range leaves {
				_ = unix.Rmdir(leaf) // a file, or not empty yet
			}
			return unix.Rmdir(batch) == nil
		})
	})
	for _, dir := range []string{batch, step} {
		for _, file := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
			if err := os.Chown(filepath.Join(dir, file), uid, uid); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// inStep runs a script as a user in the leaf of batch, without a session.
func inStep(t *testing.T, user, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-ec", `echo $$ >`+batch+`/step/cgroup.procs
		exec setpriv --reuid `+user+` --regid `+user+` --init-groups env -u XDG_RUNTIME_DIR -u DBUS_SESSION_BUS_ADDRESS HOME=/home/`+user+` URUN_LINGER=0s sh -ec "$0"`, script)
	cmd.Env = append(os.Environ(), "urun="+harness.Binary, "demo=oci:"+harness.DemoLayout()+":latest", "URUN_ROOT=/home/"+user+"/batch")
	cmd.Dir = "/"
	return run(t, cmd)
}

func TestRootHugePagesAreLimited(t *testing.T) {
	needsRoot(t)
	if _, err := os.Stat("/sys/fs/cgroup/user.slice"); err != nil {
		t.Fatal(err)
	}
	delegate(t, 1002, "+hugetlb +memory +pids")
	out := inStep(t, "bob", `
		image=$($urun pull --quiet $demo)
		$urun run --rm --cgroup-parent `+batch+` $image /probe hugepages 3
		$urun run --rm --cgroup-parent `+batch+` --hugetlb 2MB:4m --memory 100m $image /probe hugepages 3
		$urun run -d --name huge --cgroup-parent `+batch+` --hugetlb 2MB:4m $image sleep 1000 >/dev/null
		$urun update --hugetlb 2MB:2m huge
		cat $($urun inspect -f '{{.Cgroup}}' huge)/payload/hugetlb.2MB.max
		$urun rm -f huge
		ls `+batch+` | grep urun || echo clean`)
	if got := strings.Join(strings.Fields(out), " "); got != "3 of 3 2 of 3 huge 2097152 huge clean" {
		t.Errorf("got %q", got)
	}
}

// A page size that the machine has not got has no file; a cgroup without the controller says so.
func TestRootHugePagesThatCannotBeLimited(t *testing.T) {
	needsRoot(t)
	delegate(t, 1002, "+memory +pids")
	out := inStep(t, "bob", `
		image=$($urun pull --quiet $demo)
		$urun run --rm --hugetlb 3MB:6m $image true && exit 1
		$urun run --rm --cgroup-parent `+batch+` --hugetlb 3MB:6m $image true && exit 1
		:`)
	for _, want := range []string{"hugetlb", "hint:"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nwant an error with %q", out, want)
		}
	}
}
