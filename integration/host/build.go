package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urun-dev/urun/integration/artifact"
)

// packages of the virtual host besides minbase: systemd with a session bus, what urun needs, and what tests call.
const packages = "systemd,systemd-sysv,libpam-systemd,dbus,dbus-user-session,udev,kmod,uidmap,fuse3,iproute2,procps," +
	"ca-certificates,skopeo,docker-registry"

// rootSize is the size of the root disk; the file is sparse.
const rootSize = "4G"

// The labels by which initrd.sh finds the disks; that of the root is in root.sh.
const (
	modulesLabel = "urun-modules"
	payloadLabel = "urun-payload"
)

// The machine under integration/host is made of files that root.sh and kernel.sh make of Debian's packages.
type parts struct {
	root    string // the root disk
	kernel  string // bzImage
	modules string // a disk of the kernel's modules
	initrd  string // mounts the disks
}

// build makes what is not in the cache: half a minute for the root, ten seconds for a kernel.
func build(kernel string) (p parts, err error) {
	cache, err := artifact.Cache()
	if err != nil {
		return p, err
	}
	suite, sources, err := artifact.DebianSource()
	if err != nil {
		return p, err
	}
	key, err := artifact.Digests("integration/host/root.sh", sources)
	if err != nil {
		return p, err
	}
	dir, err := artifact.Cached(cache, "host-root", append(key, suite, packages, rootSize), func(dir string) error {
		return buildRoot(filepath.Join(dir, "disk"), suite, sources)
	})
	if err != nil {
		return p, fmt.Errorf("the host's root: %w", err)
	}
	p.root = filepath.Join(dir, "disk")
	if p.initrd, err = buildInitrd(cache); err != nil {
		return p, fmt.Errorf("the initramfs: %w", err)
	}
	if key, err = artifact.Digests("integration/host/kernel.sh", sources); err != nil {
		return p, err
	}
	dir, err = artifact.Cached(cache, "host-kernel-"+kernel, append(key, modulesLabel), func(dir string) error {
		if _, err := artifact.Output("integration/host/kernel.sh", kernel, dir); err != nil {
			return err
		}
		modules := filepath.Join(dir, "modules")
		return errors.Join(makeDisk(modules, modulesLabel, filepath.Join(dir, "disk")), os.RemoveAll(modules))
	})
	if err != nil {
		return p, fmt.Errorf("kernel %s: %w", kernel, err)
	}
	p.kernel, p.modules = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "disk")
	return p, nil
}

// buildInitrd makes the initramfs that finds the disks by their labels: from Linux 6.11 on the namespaces of an NVMe
// controller are scanned all at once, and which becomes nvme0n1 is left to chance.
func buildInitrd(cache string) (string, error) {
	key, err := artifact.Digests("integration/host/initrd.sh")
	if err != nil {
		return "", err
	}
	dir, err := artifact.Cached(cache, "host-initrd", key, func(dir string) error {
		_, err := artifact.Output("integration/host/initrd.sh", filepath.Join(dir, "initrd"))
		return err
	})
	return filepath.Join(dir, "initrd"), err
}

// buildRoot makes the root disk. Only the hook, which runs as root or as the root of mmdebstrap's user namespace,
// sees the tree with its owners, so the disk is made by it.
func buildRoot(disk, suite, sources string) error {
	// Owned by the caller, and written by the root of a namespace in which the caller is somebody else.
	if err := os.WriteFile(disk, nil, 0o666); err != nil {
		return err
	}
	if err := os.Chmod(disk, 0o666); err != nil {
		return err
	}
	script, err := filepath.Abs("integration/host/root.sh")
	if err != nil {
		return err
	}
	if _, err := artifact.Output("mmdebstrap", "--quiet", "--variant=minbase", "--format=null", `--aptopt=Acquire::Retries "3"`, "--include="+packages,
		fmt.Sprintf(`--customize-hook=%s "$1" %s %s`, script, disk, rootSize), suite, "-", sources); err != nil {
		return err
	}
	return os.Chmod(disk, 0o644)
}

// makeDisk makes an ext4 file system of a directory, to be read only.
func makeDisk(dir, label, disk string) error {
	var size int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		size += 4096 + (fi.Size()+4095)&^4095
		return nil
	})
	if err != nil {
		return err
	}
	// Room for inodes and bitmaps.
	size += size/8 + 16<<20
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/usr/sbin/mke2fs" // not in every user's PATH
	}
	_, err = artifact.Output(mke2fs, "-q", "-F", "-t", "ext4", "-L", label, "-O", "^has_journal", "-m", "0", "-d", dir, disk, strconv.FormatInt(size>>10, 10)+"k")
	return err
}

// payload makes the disk that the host mounts on /urun: what dir holds (nil: bin/urun alone) and the agent.
func payload(dir, disk string) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "urun-payload-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
			return err
		}
		if data, err := os.ReadFile("bin/urun"); err == nil {
			if err := os.WriteFile(filepath.Join(dir, "bin/urun"), data, 0o755); err != nil {
				return err
			}
		}
	}
	if _, err := artifact.Output("go", "build", "-buildvcs=false", "-trimpath", "-o", filepath.Join(dir, "bin/agent"), "./integration/host/agent"); err != nil {
		return err
	}
	return makeDisk(dir, payloadLabel, disk)
}

// kernels are those that kernel.sh can get.
var kernels = []string{"5.10", "6.1", "6.12"}

func kernelList() string { return strings.Join(kernels, ", ") }
