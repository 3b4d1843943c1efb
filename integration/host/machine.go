package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/host/wire"
)

// machine is a running virtual host. Its disks are not written to: all that happens in it goes with it.
type machine struct {
	dir     string
	qemu    *exec.Cmd
	ended   chan struct{} // closed when qemu has ended
	console console
	conn    *wire.Conn
	close   func() error
	boot    wire.Boot
}

// bootTime bounds the time until the agent says that the host is up. It is generous: emulation on a machine that does
// other things as well is slow.
const bootTime = 5 * time.Minute

// boot starts a virtual host and waits until its users' buses are there.
func boot(ctx context.Context, p parts, dir string) (*machine, error) {
	m := &machine{ended: make(chan struct{})}
	if err := m.start(ctx, p, dir); err != nil {
		return nil, errors.Join(err, m.stop())
	}
	return m, nil
}

func (m *machine) start(ctx context.Context, p parts, dir string) (err error) {
	// A unix socket's path is short; and nobody else may connect to root's commands.
	if m.dir, err = os.MkdirTemp("", "urun-host-"); err != nil {
		return err
	}
	disk := filepath.Join(m.dir, "disk")
	if err := payload(dir, disk); err != nil {
		return fmt.Errorf("the disk of what is under test: %w", err)
	}
	socket := filepath.Join(m.dir, "agent")
	args := arguments(p, disk, socket)
	m.qemu = exec.Command("qemu-system-x86_64", args...)
	m.qemu.Stdout, m.qemu.Stderr = &m.console, &m.console
	// Not the terminal's signals: those are for the command inside.
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := startOnOwnThread(m.qemu); err != nil {
		m.qemu = nil
		return err
	}
	go func() {
		_ = m.qemu.Wait()
		close(m.ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	if err := m.connect(ctx, socket); err != nil {
		return fmt.Errorf("boot: %w; the console:\n%s", err, m.console.String())
	}
	return nil
}

// arguments are the machine: two CPUs, all in software unless URUN_HOST_ACCEL says kvm (a /dev/kvm that is
// there may still hang an ordinary kernel). Without cx16, since the emulation of cmpxchg16b in Debian 12's qemu (7.2) loses
// the flags, and Linux 6.12 allocates by it. The disks are namespaces of one NVMe controller, whose driver is in all of
// Debian's kernels; they are found by their labels.
func arguments(p parts, disk, socket string) []string {
	accel := "tcg,thread=multi,tb-size=512"
	if a := os.Getenv("URUN_HOST_ACCEL"); a != "" {
		accel = a
	}
	args := []string{
		"-M", "q35,smm=off,hpet=off,vmport=off,sata=off", "-accel", accel, "-cpu", "max,cx16=off", "-m", "1536", "-smp", "2",
		"-display", "none", "-no-reboot", "-nic", "none", "-monitor", "none", "-serial", "stdio",
		"-device", "nvme,id=nvme,serial=urun",
	}
	for i, file := range []string{p.root, p.modules, disk} {
		args = append(args, "-drive", fmt.Sprintf("file=%s,if=none,id=disk%d,format=raw,snapshot=on,cache=unsafe", strings.ReplaceAll(file, ",", ",,"), i+1),
			"-device", fmt.Sprintf("nvme-ns,drive=disk%d,bus=nvme,nsid=%d", i+1, i+1))
	}
	return append(args, "-device", "virtio-serial", "-chardev", "socket,id=agent,path="+socket+",server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name="+wire.Port,
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
		"-kernel", p.kernel, "-initrd", p.initrd, "-append", "console=ttyS0 quiet mitigations=off nokaslr "+
			"tsc=reliable no_timer_check panic=-1 audit=0 hugepages=8 systemd.show_status=no")
}

// startOnOwnThread starts a command whose parent, for PR_SET_PDEATHSIG, is a thread that lives as long as this process.
func startOnOwnThread(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- cmd.Start()
		select {}
	}()
	return <-started
}

func (m *machine) connect(ctx context.Context, socket string) error {
	var c net.Conn
	for {
		var err error
		if c, err = net.Dial("unix", socket); err == nil {
			break
		}
		select {
		case <-m.ended:
			return errors.New("qemu ended")
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
	m.conn, m.close = wire.New(c), c.Close
	ready := make(chan error, 1)
	go func() {
		kind, data, err := m.conn.Recv()
		if err == nil && kind != wire.Ready {
			err = fmt.Errorf("the agent began with a frame %q", kind)
		}
		if err == nil {
			err = json.Unmarshal(data, &m.boot)
		}
		ready <- err
	}()
	select {
	case err := <-ready:
		return err
	case <-m.ended:
		return errors.New("qemu ended")
	case <-ctx.Done():
		return fmt.Errorf("the host is not up after %v", bootTime)
	}
}

// cpuTime is what the machine has used of the CPUs: unlike the time that it took to boot it says the same on a busy machine.
func (m *machine) cpuTime() time.Duration {
	var ts unix.Timespec
	// The CPU clock of a process, as clock_getcpuclockid(3) makes its name; CPUCLOCK_SCHED is 2.
	if err := unix.ClockGettime(int32(^m.qemu.Process.Pid<<3|2), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// stop ends the host at once: there is nothing in it to be saved.
func (m *machine) stop() error {
	var err error
	if m.close != nil {
		err = m.close()
	}
	if m.qemu != nil {
		err = errors.Join(err, ignoreDone(m.qemu.Process.Kill()))
		<-m.ended
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}

func ignoreDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// console keeps the end of what qemu and the host's kernel say.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.text.Len() > 1<<20 {
		c.text.Next(c.text.Len() / 2)
	}
	return c.text.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}
