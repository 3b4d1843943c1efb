package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

// RemoveOwned deletes directories whose files may belong to any id of the map m.
// Exe is this binary.
func RemoveOwned(exe string, m userns.Map, dirs []string) error {
	err := removeTrees(dirs)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_, err = askInside(exe, m, kindRemove, dirs)
	return err
}

// Park gives the writable layer of the container in dir to the user, from within
// its user namespace.
func Park(dir, storage string) error { return parkStorage(dir, storage) }

// Unpark undoes Park.
func Unpark(dir, storage string) error { return unparkStorage(dir, storage) }

// WritableIn are the directories of the writable layer of the container in dir.
func WritableIn(dir string) Serve {
	// Owners that are not mapped are wanted as they are.
	return Serve{Upper: writable(dir)[0], Work: writable(dir)[1], Emulate: true}
}

// repark parks what a killed command had put back.
func repark(h *state.Handle, exe string) error {
	if parks(h.Storage) {
		if err := inside(exe, h, kindPark, []string{h.Dir()}); err != nil {
			return err
		}
	}
	h.Unparked = false
	return h.Save()
}

// Usage tells how many bytes the files below each directory take, hard links
// counted once. Their owners are ids of the map m.
func Usage(exe string, m userns.Map, dirs []string) ([]int64, error) {
	sizes, err := usage(dirs)
	if !errors.Is(err, fs.ErrPermission) {
		return sizes, err
	}
	said, err := askInside(exe, m, kindUsage, dirs)
	if err != nil {
		return nil, err
	}
	if said == nil {
		return nil, errors.New("size of files: no answer")
	}
	if err := said.Decode(&sizes); err != nil {
		return nil, err
	}
	if len(sizes) != len(dirs) {
		return nil, fmt.Errorf("size of files: got %d answers, want %d", len(sizes), len(dirs))
	}
	return sizes, nil
}

// askInside has the clean stage do something in a user namespace with the map m.
func askInside(exe string, m userns.Map, kind string, dirs []string) (*handoff.Message, error) {
	cmd, conn, err := handoff.Command(exe, handoff.Clean)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := userns.Start(cmd, m, 0); err != nil {
		return nil, err
	}
	handoff.Donated(cmd)
	err = conn.Send(kind, dirs)
	said, rerr := conn.Recv()
	if rerr == nil {
		err = event{msg: said}.failed()
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = fmt.Errorf("files of subordinate ids: %w", werr)
	}
	return said, err
}

func usage(dirs []string) ([]int64, error) {
	sizes := make([]int64, len(dirs))
	for i, dir := range dirs {
		var err error
		if sizes[i], err = usageOf(dir); err != nil {
			return nil, fmt.Errorf("size of files: %w", err)
		}
	}
	return sizes, nil
}

// usageOf walks a tree that its owner may be changing: what goes meanwhile does
// not count.
func usageOf(dir string) (size int64, err error) {
	type inode struct{ dev, ino uint64 }
	linked := map[inode]bool{}
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil
		}
		if st.Nlink > 1 {
			key := inode{uint64(st.Dev), st.Ino}
			if linked[key] {
				return nil
			}
			linked[key] = true
		}
		size += st.Size
		return nil
	})
	return size, err
}
