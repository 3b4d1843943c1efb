// Demoimage makes an OCI image of four layers out of the programs of the machine it runs on: its shell and coreutils
// with the libraries that they need. It asks no registry and no network.
//
//	demoimage [-probe PROGRAM] DIR
package main

import (
	"archive/tar"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/urun-dev/urun/integration/ocilayout"
)

// The programs of the image. Those in optional are left out where the machine has none.
var (
	programs = strings.Fields("sh cat chmod chown cp cut date dd df echo env false head hostname id ln ls mkdir mknod mv " +
		"nproc od printf pwd readlink rm rmdir sha256sum sleep sort stat sync tail tee test touch tr true tty uname wc yes")
	optional = strings.Fields("awk bash dmesg find grep kill mount ps sed seq stty umount")
)

func main() {
	probe := flag.String("probe", "", "a static `program` to add as /probe")
	flag.Usage = func() { fmt.Fprintln(os.Stderr, "usage: demoimage [-probe PROGRAM] DIR") }
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := build(flag.Arg(0), *probe); err != nil {
		fmt.Fprintf(os.Stderr, "demoimage: %v\n", err)
		os.Exit(1)
	}
}

func build(dir, probe string) error {
	bins, err := find()
	if err != nil {
		return err
	}
	libs, err := libraries(bins)
	if err != nil {
		return err
	}
	_, err = ocilayout.Write(
		dir,
		ocilayout.Options{
			Tag: "latest", Architecture: runtime.GOARCH, GzipLevel: 1,
			Config: v1.ImageConfig{
				Env:        []string{"PATH=/usr/bin:/bin", "URUN_DEMO=1"},
				Cmd:        []string{"sh"},
				WorkingDir: "/",
			},
		},
		ocilayout.Entries(func(tw *tar.Writer) error { return base(tw, libs) }),
		ocilayout.Entries(func(tw *tar.Writer) error { return tools(tw, bins, probe) }),
		ocilayout.Entries(first),
		ocilayout.Entries(second),
	)
	return err
}

// base is the first layer: the directories, the accounts and the libraries.
func base(tw *tar.Writer, libs map[string]string) error {
	made := map[string]bool{}
	for _, d := range strings.Fields("bin dev etc home proc root run sys tmp usr usr/bin var var/tmp") {
		mode := int64(0o755)
		if strings.HasSuffix(d, "tmp") {
			mode = 0o1777
		}
		if err := ocilayout.Dir(tw, d, mode); err != nil {
			return err
		}
		made[d] = true
	}
	for _, name := range slices.Sorted(maps.Keys(libs)) {
		if err := parents(tw, made, name); err != nil {
			return err
		}
		if err := ocilayout.HostFile(tw, strings.TrimPrefix(name, "/"), libs[name]); err != nil {
			return err
		}
	}
	accounts := map[string]string{
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nuser:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
		"etc/group":         "root:x:0:\ndaemon:x:1:\nstaff:x:50:user\nuser:x:1000:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"etc/os-release":    "ID=urun-demo\nPRETTY_NAME=\"urun demo image\"\n",
	}
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		if err := ocilayout.File(tw, name, 0o644, accounts[name]); err != nil {
			return err
		}
	}
	return nil
}

func parents(tw *tar.Writer, made map[string]bool, name string) error {
	dir := strings.TrimPrefix(filepath.Dir(name), "/")
	if dir == "." || dir == "" || made[dir] {
		return nil
	}
	if err := parents(tw, made, dir); err != nil {
		return err
	}
	made[dir] = true
	return ocilayout.Dir(tw, dir, 0o755)
}

// tools is the second layer: the programs.
func tools(tw *tar.Writer, bins map[string]string, probe string) error {
	for _, name := range slices.Sorted(maps.Keys(bins)) {
		if err := ocilayout.HostFile(tw, "usr/bin/"+name, bins[name]); err != nil {
			return err
		}
	}
	if err := ocilayout.Symlink(tw, "bin/sh", "/usr/bin/sh"); err != nil {
		return err
	}
	if _, ok := bins["bash"]; ok {
		if err := ocilayout.Symlink(tw, "bin/bash", "/usr/bin/bash"); err != nil {
			return err
		}
	}
	if probe == "" {
		return nil
	}
	return ocilayout.HostFile(tw, "probe", probe)
}

// first and second are the layers that show the merge.
func first(tw *tar.Writer) error {
	return errors.Join(
		ocilayout.Dir(tw, "demo", 0o755),
		ocilayout.File(tw, "demo/kept", 0o644, "from layer 3\n"),
		ocilayout.File(tw, "demo/replaced", 0o644, "from layer 3\n"),
		ocilayout.File(tw, "demo/deleted", 0o644, "from layer 3\n"),
		ocilayout.Dir(tw, "demo/opaque", 0o755),
		ocilayout.File(tw, "demo/opaque/old", 0o644, "from layer 3\n"),
		ocilayout.Entry(tw, &tar.Header{
			Typeflag: tar.TypeReg, Name: "demo/owned", Mode: 0o640, Uid: 1000, Gid: 50,
		}, "of user 1000, group 50\n"),
	)
}

func second(tw *tar.Writer) error {
	return errors.Join(
		ocilayout.Dir(tw, "demo", 0o755),
		ocilayout.File(tw, "demo/replaced", 0o644, "from layer 4\n"),
		ocilayout.Whiteout(tw, "demo", "deleted"),
		ocilayout.Dir(tw, "demo/opaque", 0o755),
		ocilayout.Whiteout(tw, "demo/opaque", ".wh..opq"),
		ocilayout.File(tw, "demo/opaque/new", 0o644, "from layer 4\n"),
	)
}

// find gives the host's path of each program, with symbolic links (dash as sh, mawk as awk) followed.
func find() (map[string]string, error) {
	path := os.Getenv("PATH") + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
	if err := os.Setenv("PATH", path); err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, name := range append(slices.Clone(programs), optional...) {
		p, err := exec.LookPath(name)
		if err == nil {
			p, err = filepath.EvalSymlinks(p)
		}
		if errors.Is(err, exec.ErrNotFound) && slices.Contains(optional, name) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found[name] = p
	}
	return found, nil
}

// libraries gives what the programs are linked with, their loader among it: name in the image -> file of the host.
func libraries(bins map[string]string) (map[string]string, error) {
	libs := map[string]string{}
	todo := slices.Sorted(maps.Values(bins))
	for len(todo) > 0 {
		file := todo[0]
		todo = todo[1:]
		needed, loader, err := linked(file)
		if err != nil {
			return nil, err
		}
		if loader != "" {
			if _, ok := libs[loader]; !ok {
				real, err := filepath.EvalSymlinks(loader)
				if err != nil {
					return nil, err
				}
				libs[loader] = real
			}
		}
		for _, so := range needed {
			real, err := locate(so)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			name := "/usr/lib/" + so
			if _, ok := libs[name]; !ok {
				libs[name] = real
				todo = append(todo, real)
			}
		}
	}
	return libs, nil
}

// linked reads the names of the libraries and the loader that an ELF file asks for. Scripts ask for none.
func linked(file string) (needed []string, loader string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) {
			return nil, "", nil
		}
		return nil, "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			buf := make([]byte, p.Filesz)
			if _, err := p.ReadAt(buf, 0); err != nil {
				return nil, "", fmt.Errorf("%s: interpreter: %w", file, err)
			}
			loader = strings.TrimRight(string(buf), "\x00")
		}
	}
	needed, err = f.ImportedLibraries()
	return needed, loader, err
}

// locate finds a library of this machine's own architecture: others may be installed beside it.
func locate(so string) (string, error) {
	own, err := elf.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer own.Close()
	for _, dir := range strings.Fields("/lib /usr/lib /lib64 /usr/lib64 /lib/*-linux-gnu* /usr/lib/*-linux-gnu*") {
		found, err := filepath.Glob(filepath.Join(dir, so))
		if err != nil {
			return "", err
		}
		for _, file := range found {
			f, err := elf.Open(file)
			if err != nil {
				return "", err
			}
			fits := f.Machine == own.Machine && f.Class == own.Class
			if err := f.Close(); err != nil {
				return "", err
			}
			if fits {
				return filepath.EvalSymlinks(file)
			}
		}
	}
	return "", fmt.Errorf("library %s: %w", so, fs.ErrNotExist)
}
