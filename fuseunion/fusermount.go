package fuseunion

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoFusermount says that neither fusermount3 nor fusermount is there.
var ErrNoFusermount = errors.New("no fusermount3 found")

// fusermount finds the setuid program of libfuse.
func fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoFusermount
}

// MountFusermount makes a read-only FUSE mount on dir, in the caller's mount
// namespace, by fusermount3, which lets users without privilege do so on
// directories that they may write to. It returns the device for Serve, after
// which the mount is the same as others, but for two things: only processes of the
// caller's uid see into it, and all of it, since permissions are not enforced.
// UnmountFusermount ends it.
func MountFusermount(dir string, opt MountOptions) (*os.File, error) {
	path, err := fusermount()
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(fds[0])
	theirs := os.NewFile(uintptr(fds[1]), "fusermount")
	opt = opt.withDefaults()
	cmd := exec.Command(path, "-o", "ro,nosuid,nodev,fsname="+escapeOption(opt.Source)+",subtype="+escapeOption(opt.Subtype), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	if err = errors.Join(fusermountError(err, out), theirs.Close()); err != nil {
		return nil, err
	}
	return receiveDevice(fds[0])
}

// UnmountFusermount takes a mount away that the caller has made; a lazy one goes
// out of sight at once and ends with its last user.
func UnmountFusermount(dir string, lazy bool) error {
	path, err := fusermount()
	if err != nil {
		return err
	}
	args := []string{"-u", "--", dir}
	if lazy {
		args = []string{"-u", "-z", "--", dir}
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return fusermountError(err, out)
}

func fusermountError(err error, out []byte) error {
	if err == nil {
		return nil
	}
	// The last line says what went wrong, before it may be warnings.
	text := strings.TrimSpace(string(out))
	if text = text[strings.LastIndexByte(text, '\n')+1:]; text == "" {
		return fmt.Errorf("fusermount3: %w", err)
	}
	// It has no exit status of its own for this; the text is strerror's.
	if what, busy := strings.CutSuffix(text, ": Device or resource busy"); busy {
		return fmt.Errorf("%s: %w", what, unix.EBUSY)
	}
	return errors.New(text)
}

// escapeOption keeps a value from being more than one mount option.
func escapeOption(s string) string { return strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(s) }

func receiveDevice(sock int) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive fuse device: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, fmt.Errorf("receive fuse device: %w", err)
	}
	var fds []int
	for i := range msgs {
		if fds, err = unix.ParseUnixRights(&msgs[i]); err != nil {
			return nil, fmt.Errorf("receive fuse device: %w", err)
		}
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("receive fuse device: got %d descriptors", len(fds))
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}
