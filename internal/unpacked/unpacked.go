// Package unpacked keeps images as plain files, for machines where no FUSE mount
// can be had: below a kernel's overlayfs, or as the source of copies.
//
// In a store's directory "unpacked" there is one tree of files for an image's merged tree
// and an id map, CHAIN-MAP: the owners of its files are ids of that map. Next to it
// lies CHAIN-MAP.lock, held while it is made. It is made under another name, brought to
// disk, and then renamed: what is there is whole. It goes with the merged tree.
//
// Ensure and Copy run as root of the container's user namespace (P3), the rest in commands.
package unpacked

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// Image is an image that is to be had as plain files.
type Image struct {
	Tree  string                 `json:"tree"`
	Data  []string               `json:"data"`
	Serve fuseunion.ServeOptions `json:"serve"`
	// Dir is where its files are kept for all containers.
	Dir string `json:"dir"`
}

// Root is the directory of a store that holds the unpacked images.
func Root(store string) string { return filepath.Join(store, "unpacked") }

// Dir is where the image of a merged tree lies, for the id map of that key.
func Dir(store, tree, mapKey string) string {
	return filepath.Join(Root(store), filepath.Base(tree)+"-"+mapKey)
}

// Prepare makes the directory for Ensure, closed to others: it holds set-id programs. And the lock, by the user that is
// to remove it one day.
func (img Image) Prepare() error {
	if err := os.Mkdir(filepath.Dir(img.Dir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(img.Dir+lockSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

const (
	lockSuffix = ".lock"
	tmpSuffix  = ".tmp"  // being made, or left over
	goneSuffix = ".gone" // being removed
)

// Ensure unpacks the image unless it is there. It returns what could not be unpacked, "" for nothing or when it was there.
func (img Image) Ensure() (left string, err error) {
	if _, err := os.Lstat(img.Dir); !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	lock, err := lockFile(img.Dir+lockSuffix, unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if _, err := os.Lstat(img.Dir); !errors.Is(err, fs.ErrNotExist) {
		return "", err // another was faster
	}
	tmp := img.Dir + tmpSuffix
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("unpack image: %w", err)
	}
	if left, err = img.Copy(tmp); err != nil {
		// The disk may be full: nothing is to stay.
		return "", errors.Join(fmt.Errorf("unpack image: %w", err), os.RemoveAll(tmp))
	}
	if err := publish(tmp, img.Dir); err != nil {
		return "", fmt.Errorf("unpack image: %w", err)
	}
	return left, nil
}

func lockFile(name string, how int) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), how)
		var have, want unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &have)
		}
		if err == nil && (unix.Stat(name, &want) != nil || have.Ino != want.Ino || have.Dev != want.Dev) {
			err = unix.EINTR // it was removed while this process waited: another one is in its place
		}
		if err == nil {
			return f, nil
		}
		if err = errors.Join(err, f.Close()); !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
}

// publish brings a tree of files to disk, all at once, and gives it its name.
func publish(tmp, name string) error {
	for _, step := range []func(fd int) error{
		unix.Syncfs,
		func(int) error { return os.Rename(tmp, name) },
		unix.Fsync,
	} {
		dir, err := os.Open(filepath.Dir(name))
		if err != nil {
			return err
		}
		if err := errors.Join(step(int(dir.Fd())), dir.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Copy unpacks the image into a new directory, from its layers.
func (img Image) Copy(dir string) (left string, err error) {
	tree, err := fuseunion.OpenTree(img.Tree, img.Data)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	// The command that started the container finds the note.
	tree.OnDamage(func(e *fuseunion.ContentError) { _ = e.Note() })
	return copyTo(dir, tree, img.Serve)
}

// CopyDir copies a directory of the host to a new one.
func CopyDir(from, dir string) (left string, err error) {
	low, err := fuseunion.OpenDir(from)
	if err != nil {
		return "", err
	}
	defer low.Close()
	return copyTo(dir, low, fuseunion.ServeOptions{})
}

func copyTo(dir string, low fuseunion.Lower, opt fuseunion.ServeOptions) (string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	left, err := fuseunion.Unpack(low, dir, opt)
	return left.Words(), err
}

// canShare tells whether files of a directory's file system can share their blocks
// (FICLONE, ioctl_ficlonerange(2)): then a copy of an unpacked image costs next to nothing.
func canShare(dir string) bool {
	src, err := unnamed(dir)
	if err != nil {
		return false
	}
	defer src.Close()
	dst, err := unnamed(dir)
	if err != nil {
		return false
	}
	defer dst.Close()
	if _, err := src.Write(make([]byte, 4096)); err != nil {
		return false
	}
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil
}

func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// Kept is an unpacked image.
type Kept struct {
	Chain string // of its merged tree
	Path  string
}

// List lists the unpacked images of a store.
func List(store string) ([]Kept, error) {
	entries, err := os.ReadDir(Root(store))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Kept
	for _, e := range entries {
		if filepath.Ext(e.Name()) == "" {
			chain, _, _ := strings.Cut(e.Name(), "-")
			all = append(all, Kept{Chain: chain, Path: filepath.Join(Root(store), e.Name())})
		}
	}
	return all, nil
}

// Collect removes what belongs to no merged tree that keep knows, and what was left over by
// whoever was killed. The files are removed by remove, since their owners are not this process's user.
func Collect(store string, keep func(chain string) bool, remove func(dirs []string) error) error {
	entries, err := os.ReadDir(Root(store))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[strings.TrimSuffix(e.Name(), filepath.Ext(e.Name()))] = true
	}
	var errs []error
	for name := range names {
		chain, _, _ := strings.Cut(name, "-")
		errs = append(errs, collect(filepath.Join(Root(store), name), keep(chain), remove))
	}
	return errors.Join(errs...)
}

// collect tidies up one image, unless somebody is unpacking it. What is to go is renamed
// first, so that nobody finds half of it.
func collect(path string, keep bool, remove func([]string) error) error {
	lock, err := lockFile(path+lockSuffix, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if errors.Is(err, fs.ErrPermission) {
		// It was made by root of a namespace in which this user is another.
		return remove([]string{path + lockSuffix})
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	gone := []string{path + tmpSuffix, path + goneSuffix}
	if err := remove(gone); err != nil {
		return err
	}
	if keep {
		return nil
	}
	if err := os.Rename(path, path+goneSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(remove(gone), os.Remove(path+lockSuffix))
}
