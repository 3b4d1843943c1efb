package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// inJob makes this process, and what it starts, one of a batch job.
func inJob(t *testing.T) {
	t.Helper()
	t.Setenv("SLURM_JOB_ID", fmt.Sprintf("it%d", os.Getpid()))
}

func TestABatchJobsContainersRunAsItsUser(t *testing.T) {
	me := fmt.Sprint(os.Getuid())
	inJob(t)
	harness.Sh(t, "id -u").Says(me)
	harness.Sh(t, "--userns", "auto", "id -u").Says("0")
	// Who names a user means one of the image.
	harness.Sh(t, "-u", "root", "id -u").Says("0")
	config(t, "userns = 'auto'\n")
	harness.Sh(t, "id -u").Says("0")
	if err := os.Unsetenv("SLURM_JOB_ID"); err != nil { // t.Setenv brings it back
		t.Fatal(err)
	}
	config(t, "")
	harness.Sh(t, "id -u").Says("0")
}

// config makes the user's configuration file.
func config(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	name := filepath.Join(dir, "urun", "config.toml")
	if err := os.Mkdir(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestBindAndHome(t *testing.T) {
	home, scratch := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	for _, dir := range []string{home, scratch} {
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte(dir), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	harness.Sh(t, "--bind", scratch+","+home+":/mnt/home:ro", "cat "+scratch+"/file /mnt/home/file; echo x > "+scratch+"/new && ! echo x 2>/dev/null > /mnt/home/new").Says(scratch + home)
	if _, err := os.Stat(filepath.Join(scratch, "new")); err != nil {
		t.Error(err)
	}
	t.Chdir(scratch)
	harness.Sh(t, "--userns", "keep-id", "--home", "pwd; cat file $HOME/file; echo; id -u").Says(fmt.Sprintf("%s\n%s%s\n%d", scratch, scratch, home, os.Getuid()))
	harness.Sh(t, "--home", "-w", "/", "pwd").Says("/")
	harness.Run(t, "--bind", "/nowhere/at/all", "--", "true").Refused("--bind", "does not exist", "hint:")
}

func TestTheConfigurationIsInEffectAndShown(t *testing.T) {
	scratch := t.TempDir()
	t.Setenv("MODULEPATH", "/modules")
	name := config(t, "bind = ['"+scratch+"']\nenv = ['MODULE*']\nnetwork = 'none'\nhome = true\n")
	home := t.TempDir()
	t.Setenv("HOME", home)
	harness.Sh(t, "test -d "+scratch+" && test -d "+home+" && echo $MODULEPATH && ls /sys/class/net").Says("/modules\nlo")
	harness.Sh(t, "--no-home", "test ! -d "+home+" && echo gone").Says("gone")
	harness.Urun(t, "info").Has("bind = "+scratch+", from "+name, "network = none, from "+name, "home = true")

	name = config(t, "home = true\nbnid = ['/x']\n")
	harness.Run(t, "true").Refused(name+":2:", "bnid", "hint:")
}

// namespace is a namespace of this process.
func namespace(t *testing.T, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestHPCSharesWhatRanksMeetIn(t *testing.T) {
	for name, value := range map[string]string{"SLURM_PROCID": "3", "PMIX_RANK": "3", "OMPI_COMM_WORLD_RANK": "3", "SECRET": "x", "OMP_NUM_THREADS": ""} {
		t.Setenv(name, value)
	}
	if err := os.Unsetenv("OMP_NUM_THREADS"); err != nil {
		t.Fatal(err)
	}
	out := harness.Sh(t, "--hpc", "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/pid; env").OK()
	for _, kind := range []string{"net", "ipc", "pid"} {
		if !strings.Contains(out, namespace(t, kind)+"\n") {
			t.Errorf("the %s namespace is not the host's %s:\n%s", kind, namespace(t, kind), out)
		}
	}
	for _, want := range []string{"SLURM_PROCID=3", "PMIX_RANK=3", "OMPI_COMM_WORLD_RANK=3"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s:\n%s", want, out)
		}
	}
	for _, not := range []string{"SECRET=", "OMP_NUM_THREADS"} {
		if strings.Contains(out, not) {
			t.Errorf("%s is there:\n%s", not, out)
		}
	}
}

// launcher is the launcher's side of PMI: it answers one question at a file that a rank gets.
func launcher(t *testing.T) *os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "launcher"), os.NewFile(uintptr(fds[1]), "rank")
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	t.Cleanup(func() { conn.Close(); theirs.Close() })
	go func() {
		question := make([]byte, 100)
		n, err := conn.Read(question)
		if err == nil && string(question[:n]) == "cmd=get_my_kvsname\n" {
			_, _ = conn.Write([]byte("cmd=my_kvsname kvsname=job0\n")) // the test sees when it does not come
		}
	}()
	return theirs
}

func TestTheLaunchersFileIsPassedOn(t *testing.T) {
	const answer = "cmd=my_kvsname kvsname=job0"
	t.Setenv("PMI_FD", "3")
	for _, flags := range [][]string{{"--hpc"}, {"--hpc", "--init"}, {"--hpc", "--pid", "private"}} {
		args := append(flags, "--", "/probe", "pmi")
		harness.RunLeaking(t, []*os.File{launcher(t)}, harness.RunArgs(args...)...).Says(answer)
	}
	harness.RunLeaking(t, []*os.File{launcher(t)}, harness.RunArgs("-e", "PMI_FD", "--preserve-fd", "3", "--", "/probe", "pmi")...).Says(answer)
	// Nothing else comes along.
	if out := harness.RunLeaking(t, []*os.File{launcher(t)}, harness.RunArgs("--", "/probe", "fds")...).OK(); strings.Contains(out, "socket") {
		t.Errorf("a file that nobody asked for is there:\n%s", out)
	}
	harness.Run(t, "--hpc", "--", "true").Refused("PMI_FD 3", "no file")
}

func TestACommandHasTheCPUsOfItsJob(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one CPU: there is nothing to choose")
	}
	runtime.LockOSThread() // never unlocked: the thread, which is bound from here on, ends with the test
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !before.IsSet(cpu) {
		cpu++
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	harness.Sh(t, "--hpc", "nproc; grep Cpus_allowed_list /proc/self/status | tr -d '\\t'").Says(fmt.Sprintf("1\nCpus_allowed_list:%d", cpu))
}
