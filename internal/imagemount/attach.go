package imagemount

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/handoff"
)

// Image says what to mount.
type Image struct {
	ID   string // hexadecimal; the mount is called urun:ID
	Tree string
	Data []string
}

const (
	subtype      = "urun-image" // the mount's type is fuse.urun-image
	sourcePrefix = "urun:"
)

func (i Image) options() fuseunion.MountOptions {
	return fuseunion.MountOptions{Source: sourcePrefix + i.ID, Subtype: subtype}
}

// Messages between the caller and the stage.
const (
	kindServe  = "serve"  // caller to server: Image; files: the device, and what keeps the image from being removed
	kindReady  = "ready"  // server to caller
	kindEnter  = "enter"  // caller to the command's process: enter
	kindMount  = "mount"  // the command's process to caller; file: the device
	kindExec   = "exec"   // caller to the command's process: it is served
	kindFailed = "failed" // failed
)

type failed struct {
	Error string
	Code  int
}

// Attach mounts an image on a directory and starts its server, the binary exe. Held are
// files that the server is to hold open as long as the mount lives.
func Attach(exe string, img Image, dir string, held ...*os.File) (err error) {
	dev, err := mount(img, dir)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", dir, err)
	}
	defer dev.Close()
	if err := startServer(exe, img, append([]*os.File{dev}, held...)); err != nil {
		// Nobody serves it: whoever looked would hang, but for the device being closed.
		return errors.Join(fmt.Errorf("serve %s: %w", dir, err), dev.Close(), Detach(dir, true))
	}
	return nil
}

// mount mounts by itself where it may, else by fusermount3.
func mount(img Image, dir string) (*os.File, error) {
	if os.Geteuid() == 0 {
		dev, err := mountDirectly(img, dir)
		if err == nil || !errors.Is(err, unix.EPERM) {
			return dev, err
		}
	}
	return fuseunion.MountFusermount(dir, img.options())
}

func mountDirectly(img Image, dir string) (*os.File, error) {
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	m, err := fuseunion.Mount(dev, img.options())
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	defer m.Close()
	if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, errors.Join(fmt.Errorf("move_mount to %s: %w", dir, err), dev.Close())
	}
	return dev, nil
}

// startServer starts the process that serves a mount and waits until it does.
func startServer(exe string, img Image, files []*os.File) error {
	cmd, conn, err := handoff.Command(exe, handoff.Mount)
	if err != nil {
		return err
	}
	defer conn.Close()
	// It outlives the terminal, and keeps no directory of the caller busy.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	if err := start(cmd); err != nil {
		return err
	}
	if err := conn.Send(kindServe, img, files...); err != nil {
		return errors.Join(err, kill(cmd))
	}
	m, err := conn.Recv()
	if err == nil {
		err = problem(m, kindReady)
	}
	if err != nil {
		return errors.Join(err, kill(cmd))
	}
	return cmd.Process.Release()
}

func start(cmd *exec.Cmd) error {
	err := cmd.Start()
	handoff.Donated(cmd)
	return err
}

func kill(cmd *exec.Cmd) error {
	err := cmd.Process.Kill()
	_ = cmd.Wait() // it is dead, and how is known
	return err
}

// Detach takes the mount on dir away. With force it goes out of sight at once, also
// when it is in use.
func Detach(dir string, force bool) error {
	flags := 0
	if force {
		flags = unix.MNT_DETACH
	}
	err := unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		err = fuseunion.UnmountFusermount(dir, force)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// Mount is a mounted image.
type Mount struct {
	ID  string // of the image
	Dir string
}

// List gives the images that are mounted in the caller's mount namespace.
func List() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mounts []Mount
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if m, ok := parseMount(lines.Text()); ok {
			mounts = append(mounts, m)
		}
	}
	return mounts, lines.Err()
}

// parseMount reads a line of mountinfo, see proc_pid_mountinfo(5).
func parseMount(line string) (m Mount, ok bool) {
	before, after, _ := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if len(f) < 5 || len(g) < 2 || g[0] != "fuse."+subtype {
		return m, false
	}
	id, ok := strings.CutPrefix(g[1], sourcePrefix)
	dir := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
	return Mount{ID: id, Dir: filepath.Clean(dir)}, ok
}

// serve is the server of Attach.
func serve(parent *handoff.Conn, m *handoff.Message) error {
	var img Image
	if err := m.Decode(&img); err != nil {
		return err
	}
	if len(m.Files) == 0 {
		return errors.New("got no device")
	}
	tree, err := fuseunion.OpenTree(img.Tree, img.Data)
	if err != nil {
		return err
	}
	noteDamage(tree)
	if err := errors.Join(parent.Send(kindReady, nil), parent.Close()); err != nil {
		return err
	}
	err = fuseunion.Serve(context.Background(), m.Files[0], tree, fuseunion.ServeOptions{})
	runtime.KeepAlive(m) // or what holds the image would be closed by its finalizer
	return err
}

// noteDamage leaves notes of what is damaged: readers of a mount are told no more than EIO. A store of somebody else takes
// none.
func noteDamage(tree *fuseunion.Tree) {
	tree.OnDamage(func(e *fuseunion.ContentError) { _ = e.Note() })
}
