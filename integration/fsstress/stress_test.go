package fsstress

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

func TestMain(m *testing.M) {
	harness.Timeout = 9 * time.Minute
	os.Exit(harness.Main(m))
}

// eachStorage runs a test with both, in the image of a Debian with the programs.
func eachStorage(t *testing.T, test func(t *testing.T, urun func(args ...string) *harness.Result, image string)) {
	t.Helper()
	layout := os.Getenv("URUN_STRESS_IMAGE")
	if layout == "" {
		t.Skip("takes minutes: make fs-stress")
	}
	image := harness.Urun(t, "pull", "-q", "oci:"+layout+":latest").OK()
	for _, storage := range []string{"overlay", "fuse"} {
		t.Run(storage, func(t *testing.T) {
			start := time.Now()
			test(t, func(args ...string) *harness.Result {
				t.Helper()
				return harness.Urun(t, append([]string{"run", "--rm", "--storage", storage}, args...)...)
			}, image)
			t.Logf("%v", time.Since(start).Round(time.Second))
		})
	}
}

// TestFioVerifies writes patterns in every way that fio has and reads them back: to new files, to a file of the image
// (which has to be copied up), through mappings, past the page cache, and while another job reads.
func TestFioVerifies(t *testing.T) {
	eachStorage(t, func(t *testing.T, urun func(args ...string) *harness.Result, image string) {
		const verify = " --verify=crc32c --verify_fatal=1 --verify_dump=0 --minimal --randseed=1"
		for name, job := range map[string]string{
			"random":     "--directory=/work --size=8M --nrfiles=6 --rw=randrw --bsrange=512-64k --ioengine=psync --numjobs=4 --fsync=64",
			"sequential": "--directory=/work --size=12M --rw=write --bs=128k --ioengine=psync --numjobs=2 --end_fsync=1",
			"mapped":     "--directory=/work --size=8M --rw=randwrite --bs=4k --ioengine=mmap --numjobs=2",
			"direct":     "--directory=/work --size=8M --rw=randrw --bs=4k --ioengine=libaio --iodepth=16 --direct=1 --numjobs=2",
			"vectors":    "--directory=/work --size=8M --rw=randrw --bs=16k --ioengine=pvsync2 --fallocate=none --file_append=0",
			"copied up":  "--filename=/usr/bin/git --size=2M --rw=randwrite --bs=4k --ioengine=psync --overwrite=1",
		} {
			r := urun(image, "sh", "-c", "mkdir /work && fio --name=job "+job+verify+" >/dev/null && rm -r /work")
			if r.Code != 0 {
				t.Errorf("%s: %s", name, r)
			}
		}
	})
}

// stressors are those of stress-ng's classes filesystem and file I/O that use files of ordinary users; each checks what it does.
const stressors = "access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fiemap file-ioctl filename flock fpunch fstat " +
	"getdent hdd inode-flags io iomix link lockf lease locka lockofd mknod open rename revio seek sendfile symlink sync-file touch " +
	"utime verity xattr mmap mmapaddr mmapfixed mmapmany msync readahead splice tee vm-splice aio fault fcntl ioprio pipe mremap"

func TestStressorsOfStressNG(t *testing.T) {
	eachStorage(t, func(t *testing.T, urun func(args ...string) *harness.Result, image string) {
		script := `cd /work || exit 1
for s in ` + stressors + `; do
	out=$(stress-ng --temp-path /work --verify -t 1s --$s 1 2>&1); code=$?
	case $code in 0|3|4) ;; *) echo "FAILED $s ($code): $out" ;; esac
	case $out in *"fail:"*) echo "FAILED $s: $out" ;; *"unrecognized option"*) echo "UNKNOWN $s" ;; esac
	[ -z "$(ls -A /work)" ] || { echo "LEFT by $s: $(ls -A /work)"; rm -rf /work/*; }
done; echo done`
		r := urun(image, "sh", "-c", "mkdir /work; "+script)
		if got := r.OK(); got != "done" {
			t.Errorf("%s", got)
		}
	})
}

// TestGitIsWholeAfterHeavyUse fills a repository with what the image has, changes it again and again, and has git check it.
func TestGitIsWholeAfterHeavyUse(t *testing.T) {
	eachStorage(t, func(t *testing.T, urun func(args ...string) *harness.Result, image string) {
		r := urun(image, "bash", "-ec", `
export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
mkdir -p /work/doc; cp -a /usr/share/perl /work/; cp -a /usr/share/doc/[a-g]* /work/doc/; cd /work
git init -q -b main; git add -A; git commit -qm 0
for i in $(seq 4); do
	git checkout -q -b b$i
	mv doc doc$i; mkdir -p x/$i; cp -a doc$i/git x/$i/; rm -rf perl; git add -A; git commit -qm $i
	git checkout -q main; [ -d doc ] && [ -d perl ] && [ ! -e x/$i ]
	echo $i >> count; git add count; git commit -qm c$i; git merge -q --no-edit b$i; git mv doc$i doc; git checkout -q b$i~1 -- perl; git commit -qm m$i
done
git gc -q --prune=now
git clone -q /work /clone; git clone -q --no-local /work /clone2; git -C /clone2 repack -adfq
for d in /work /clone /clone2; do git -C $d fsck --full --strict 2>&1; git -C $d status --porcelain; done
diff -r --no-dereference --exclude=.git /work /clone && diff -r --no-dereference --exclude=.git /work /clone2 && echo same`)
		if got := r.OK(); got != "same" {
			t.Errorf("%s", r)
		}
	})
}

// TestTenThousandOpenFiles opens files of the image and of the container, unlinks the latter, and reads all.
func TestTenThousandOpenFiles(t *testing.T) {
	eachStorage(t, func(t *testing.T, urun func(args ...string) *harness.Result, image string) {
		r := urun("--ulimit", "nofile=10500:10500", image, "perl", "-e", `
my @lower = split /\n/, qx(find /usr -xdev -type f -size -20k | head -5000); die scalar @lower unless @lower == 5000;
mkdir "/work"; my (@own, @low);
for my $i (1..5000) { open(my $f, "+>", "/work/$i") or die "$i: $!"; syswrite($f, "content $i"); unlink "/work/$i" or die $!; push @own, $f }
for (@lower) { open(my $f, "<", $_) or die "$_: $!"; push @low, $f }
for my $i (1..5000) { sysseek($own[$i-1], 0, 0); sysread($own[$i-1], my $b, 100); die "own $i: $b" unless $b eq "content $i" }
for my $i (0..4999) { local $/; my $f = $low[$i]; my $a = <$f>; open(my $g, "<", $lower[$i]) or die $!; my $b = <$g>; die $lower[$i] unless $a eq $b }
opendir(my $d, "/work"); my @left = grep { !/^\.\.?$/ } readdir $d; die "left: @left" if @left; print "all read"`)
		if got := r.OK(); got != "all read" {
			t.Errorf("%s", r)
		}
	})
}

// TestServersDoNotGrow uses one container round after round and looks at the memory and the descriptors of what serves it.
func TestServersDoNotGrow(t *testing.T) {
	layout := os.Getenv("URUN_STRESS_IMAGE")
	eachStorage(t, func(t *testing.T, _ func(args ...string) *harness.Result, image string) {
		storage := filepath.Base(t.Name())
		name := "churn-" + storage
		harness.Urun(t, "run", "-d", "--name", name, "--storage", storage, image, "sleep", "100000").OK()
		defer func() { harness.Urun(t, "rm", "-f", name).OK() }()
		round := func(n int) {
			harness.Urun(t, "exec", name, "bash", "-ec", fmt.Sprintf(`
for r in $(seq %d); do
	mkdir -p /c/d; for i in $(seq 20); do echo $i > /c/d/$i; ln /c/d/$i /c/l$i; ln -s $i /c/s$i; done
	mv /c/d /c/e; for i in $(seq 1 2 20); do mv /c/e/$i /c/e/x$i; : >> /c/l$i; done; cat /c/e/* >/dev/null
	find /usr/share/perl -type f | head -300 | xargs cat >/dev/null; chmod 600 /c/e/*; ls -lR /c >/dev/null; rm -r /c
done`, n)).OK()
		}
		round(40)
		rss, fds := servers(t)
		t.Logf("after 40 rounds: %d KiB, %d descriptors", rss, fds)
		for range 4 {
			round(50)
		}
		rss2, fds2 := servers(t)
		t.Logf("after 240 rounds: %d KiB, %d descriptors", rss2, fds2)
		if rss == 0 || rss2 > rss+rss/4+8<<10 {
			t.Errorf("memory of the servers of %s went from %d to %d KiB", layout, rss, rss2)
		}
		if fds2 > fds+10 {
			t.Errorf("descriptors of the servers went from %d to %d", fds, fds2)
		}
	})
}

// servers sums up the memory, in KiB, and the descriptors of this user's image servers.
func servers(t *testing.T) (rss, fds int) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		cmd, err := os.ReadFile(p)
		if err != nil || !strings.HasPrefix(string(cmd), "urun\x00__union") {
			continue // it has ended, or is no server
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(p), "status"))
		if err != nil || !strings.Contains(string(status), fmt.Sprintf("\nUid:\t%d\t", os.Getuid())) {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
				n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
				if err != nil {
					t.Fatal(err)
				}
				rss += n
			}
		}
		open, err := os.ReadDir(filepath.Join(filepath.Dir(p), "fd"))
		if err != nil {
			t.Fatal(err)
		}
		fds += len(open)
	}
	return rss, fds
}
