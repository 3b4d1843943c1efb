package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

// dockerInfo is what scripts ask docker info for, by docker's names.
type dockerInfo struct {
	ID                string
	Containers        int
	ContainersRunning int
	ContainersPaused  int
	ContainersStopped int
	Images            int
	Driver            string
	LoggingDriver     string
	CgroupDriver      string
	CgroupVersion     string
	KernelVersion     string
	OperatingSystem   string
	OSType            string
	Architecture      string
	NCPU              int
	MemTotal          int64 // bytes
	DockerRootDir     string
	Name              string
	ServerVersion     string
	SecurityOptions   []string
	Rootless          bool
	IDMap             string
}

func (a *App) info() (*dockerInfo, error) {
	i := &dockerInfo{
		Driver: "fuseunion", LoggingDriver: "json-file", CgroupDriver: "none", CgroupVersion: "1",
		OSType: runtime.GOOS, Architecture: machine(), NCPU: runtime.NumCPU(), DockerRootDir: a.Root,
		ServerVersion: version, SecurityOptions: []string{"name=seccomp,profile=builtin", "name=rootless"}, Rootless: true,
		OperatingSystem: operatingSystem(),
	}
	var err error
	if i.KernelVersion, err = kernelVersion(); err != nil {
		return nil, err
	}
	if i.Name, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("host name: %w", err)
	}
	var mem unix.Sysinfo_t
	if err := unix.Sysinfo(&mem); err != nil {
		return nil, fmt.Errorf("sysinfo: %w", err)
	}
	i.MemTotal = int64(mem.Totalram) * int64(mem.Unit)
	if m, err := userns.Plan(userns.Request{}, userns.Current()); err == nil {
		i.IDMap = m.String()
	}
	if unifiedCgroups() {
		i.CgroupVersion = "2"
	}
	if len(cgdelegate.Probe(context.Background()).Controllers) > 0 {
		i.CgroupDriver = "systemd"
	}
	return i, a.count(i)
}

// count counts containers and images.
func (a *App) count(i *dockerInfo) error {
	st, err := a.Containers()
	if err != nil {
		return err
	}
	all, err := st.List()
	if err != nil {
		return err
	}
	i.Containers = len(all)
	for _, rec := range all {
		switch shownStatus(rec) {
		case state.Paused:
			i.ContainersPaused++
		case state.Running:
			i.ContainersRunning++
		default:
			i.ContainersStopped++
		}
	}
	images, err := a.images()
	i.Images = len(images)
	return err
}

func kernelVersion() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

// machine is the architecture as uname has it.
func machine() string {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return runtime.GOARCH
	}
	return unix.ByteSliceToString(uts.Machine[:])
}

// operatingSystem is the distribution's name, as os-release(5) has it.
func operatingSystem() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"'`)
		}
	}
	return "Linux"
}
