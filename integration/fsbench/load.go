package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// tools is the directory, inside, of what the loads need besides the image: this program, the list of paths, a tar and
// a repository.
const tools = "/tmp"

// loads are what is measured, inside, by name.
var loads = map[string]func() error{
	"find": func() error { return call("find", "/", "-xdev") },
	"stat": statAll,
	"ls":   func() error { return call("ls", "-lR", "/usr") },
	"tar":  func() error { return readPipe("tar", "-C", "/", "-cf", "-", "usr") },
	"python": func() error {
		return call("python3", "-B", "-c", "import json, email.message, decimal, argparse, http.client")
	},
	"read":   readBig,
	"random": randomReads,
	"create": createFiles,
	"unlink": func() error { return os.RemoveAll("/root/created") },
	"untar": func() error {
		return errors.Join(os.MkdirAll("/root/u", 0o755), call("tar", "-C", "/root/u", "-xf", tools+"/src.tar"))
	},
	"rm":      func() error { return call("rm", "-rf", "/root/u") },
	"rename":  renameDirs,
	"clone":   func() error { return call("git", "clone", "-q", tools+"/repo.git", "/root/clone") },
	"status":  func() error { return call("git", "-C", "/root/clone", "status", "--short") },
	"rmlower": func() error { return call("rm", "-rf", "/remove") },
	"mv":      func() error { return call("mv", "/move", "/moved") },
	"copyup":  copyUp,
	"clients": clients,
	"walk":    walk,
}

// loadMain runs loads and prints the time of each. A load may be repeated, as in "python*20": then the time is of all.
func loadMain(names []string) error {
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	for k, v := range map[string]string{"HOME": "/root", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	enc := json.NewEncoder(os.Stdout)
	for _, name := range names {
		base, count := name, 1
		if b, n, ok := strings.Cut(name, "*"); ok {
			base = b
			if _, err := fmt.Sscan(n, &count); err != nil {
				return err
			}
		}
		load := loads[strings.TrimSuffix(base, "'")]
		if load == nil {
			return fmt.Errorf("no load %q", base)
		}
		start := time.Now()
		for range count {
			if err := load(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := enc.Encode(timing{Name: name, Seconds: time.Since(start).Seconds()}); err != nil {
			return err
		}
	}
	return nil
}

// timing is how long a load took.
type timing struct {
	Name    string
	Seconds float64
}

func call(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = out, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, said.String())
	}
	return nil
}

// readPipe reads all that a program writes: GNU tar does not read files when it writes to /dev/null.
func readPipe(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for {
		if _, err := out.Read(buf); err != nil {
			break
		}
	}
	return cmd.Wait()
}

func paths() ([]string, error) {
	raw, err := os.ReadFile(tools + "/paths")
	return strings.Split(string(raw), "\x00"), err
}

func statAll() error {
	all, err := paths()
	if err != nil {
		return err
	}
	var st syscall.Stat_t
	for _, p := range all {
		if err := syscall.Lstat("/"+p, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", p, err)
		}
	}
	return nil
}

func readBig() error {
	f, err := os.Open("/big")
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
	if err == nil && n != bigSize {
		err = fmt.Errorf("read %d bytes", n)
	}
	return err
}

func randomReads() error {
	f, err := os.Open("/big")
	if err != nil {
		return err
	}
	defer f.Close()
	rnd := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 4096)
	for range 20_000 {
		if _, err := f.ReadAt(buf, rnd.Int64N(bigSize/4096)*4096); err != nil {
			return err
		}
	}
	return nil
}

func createFiles() error {
	for i := range 5000 {
		if i%1000 == 0 {
			if err := os.MkdirAll(fmt.Sprintf("/root/created/%d", i/1000), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(fmt.Sprintf("/root/created/%d/file-%d", i/1000, i), []byte("x"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func renameDirs() error {
	if err := os.Mkdir("/root/renamed", 0o755); err != nil {
		return err
	}
	for i := range 1000 {
		from, to := fmt.Sprintf("/root/renamed/a%d", i), fmt.Sprintf("/root/renamed/b%d", i)
		if err := errors.Join(os.Mkdir(from, 0o755), os.Rename(from, to)); err != nil {
			return err
		}
	}
	return nil
}

// copyUp writes one byte into the big file of the image.
func copyUp() error {
	f, err := os.OpenFile("/big", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("x"), bigSize/2)
	return errors.Join(err, f.Close())
}

// clients has 64 processes' worth of threads read the small files of the image and list its directories.
func clients() error {
	all, err := paths()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, 64)
	for c := range errs {
		wg.Go(func() {
			for i := c; i < len(all) && errs[c] == nil; i += len(errs) {
				errs[c] = touch("/" + all[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// walk needs no program of the image's.
func walk() error {
	return filepath.WalkDir("/files", func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		_, err = d.Info()
		return err
	})
}

func touch(path string) error {
	fi, err := os.Lstat(path)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > 1<<20 || filepath.Dir(path) == "/remove" {
		return err
	}
	_, err = os.ReadFile(path)
	return err
}
