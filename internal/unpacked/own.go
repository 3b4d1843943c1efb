package unpacked

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Where a container's own copy of an image is, and where it is put together, in the container's directory.
const (
	OwnDir = "upper"
	ownTmp = "work/copy"
)

// Own makes a container's own copy of an image or, without one, of a directory, unless it is there; the copy is
// whole when it has its name. dir is the container's directory.
func Own(dir string, img *Image, from string) (made bool, left string, err error) {
	own, tmp := filepath.Join(dir, OwnDir), filepath.Join(dir, ownTmp)
	if entries, err := os.ReadDir(own); err != nil || len(entries) > 0 {
		return false, "", err
	}
	if err := os.RemoveAll(tmp); err != nil {
		return false, "", fmt.Errorf("copy image: %w", err)
	}
	left, err = copyOwn(tmp, dir, img, from)
	if err == nil {
		// Over the empty directory, which package os refuses.
		err = unix.Rename(tmp, own)
	}
	if err != nil {
		return false, "", errors.Join(fmt.Errorf("copy image: %w", err), os.RemoveAll(tmp))
	}
	return true, left, nil
}

func copyOwn(tmp, dir string, img *Image, from string) (left string, err error) {
	if img == nil {
		return CopyDir(from, tmp)
	}
	// Of plain files a copy costs next to nothing where their file system can share blocks; of a layer it
	// does not: the files in a tar do not begin where blocks do.
	if !canShare(dir) {
		return img.Copy(tmp)
	}
	if left, err = img.Ensure(); err != nil {
		return "", err
	}
	_, err = CopyDir(img.Dir, tmp)
	return left, err
}
