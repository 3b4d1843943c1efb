// Package cure has the cures that urun doctor and errors of several stages name alike: where a store has no room,
// or cannot be written.
//
// A cure that is a command is a line for a shell; what else is to be said stands behind a #. Any process may use the
// package: it only has text.
package cure

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Elsewhere has the user keep the store in a directory of his own that nobody made before him: an image in a directory
// of somebody else's would be trusted.
const Elsewhere = "mkdir -m 700 /var/tmp/urun-$(id -u) && export URUN_ROOT=/var/tmp/urun-$(id -u)"

const (
	room     = "urun system prune --force # makes room; or choose another store with --root, or keep containers elsewhere (--state DIR) and what they change in memory (--writable=tmpfs)"
	writable = Elsewhere + " # or another directory that you can write, or --root; for containers alone: --state"
	inMemory = "urun system prune --force # makes room; or keep what the container changes in memory: --writable=tmpfs"
)

// Store is what helps where the store in dir, which need not exist, cannot be used for the reason err, or "". Without dir the
// cure is what always helps.
func Store(err error, dir string) string {
	if outOfRoom(err) {
		return room
	}
	if errors.Is(err, fs.ErrPermission) && dir != "" {
		if own := locked(dir); own != "" {
			return "chmod u+rwx " + Quote(own) + " # it is yours; or choose another directory with --root"
		}
	}
	for _, is := range []error{unix.EROFS, fs.ErrPermission, unix.ENOTDIR, fs.ErrNotExist} {
		if errors.Is(err, is) {
			return writable
		}
	}
	return ""
}

// locked returns dir, or what there is of the way to it, if its mode keeps out its owner, this user; else "".
func locked(dir string) string {
	for ; ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		switch err := unix.Stat(dir, &st); {
		case err == nil && st.Uid == uint32(os.Geteuid()) && st.Mode&0o700 != 0o700:
			return dir
		case err == nil, dir == filepath.Dir(dir):
			return ""
		}
	}
}

// WritableLayer is what helps where a container's writable layer cannot be had for the reason err, or "".
func WritableLayer(err error) string {
	if outOfRoom(err) || errors.Is(err, unix.EROFS) {
		return inMemory
	}
	return ""
}

func outOfRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
