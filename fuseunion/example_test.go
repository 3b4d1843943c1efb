package fuseunion_test

import (
	"context"
	"errors"
	"log"
	"os"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// mountAt attaches a mount and returns what it is served on. It needs CAP_SYS_ADMIN in
// a user namespace, and its own mount namespace.
func mountAt(dir string, writable bool) (*os.File, error) {
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	mnt, err := fuseunion.Mount(dev, fuseunion.MountOptions{Writable: writable})
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	err = unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	return dev, errors.Join(err, mnt.Close())
}

// A merged tree (see MergeTree) is mounted read-only.
func ExampleServe() {
	dev, err := mountAt("/mnt", false)
	if err != nil {
		log.Fatal(err)
	}
	tree, err := fuseunion.OpenTree("tree", []string{"layer1/data", "layer2/data"})
	if err != nil {
		log.Fatal(err)
	}
	err = fuseunion.Serve(context.Background(), dev, tree, fuseunion.ServeOptions{}) // until it is unmounted
	if err := errors.Join(err, tree.Close(), dev.Close()); err != nil {
		log.Fatal(err)
	}
}

// A directory of the host, which stays as it is, is mounted with another one that
// takes what is changed.
func ExampleServeUnion() {
	dev, err := mountAt("/mnt", true)
	if err != nil {
		log.Fatal(err)
	}
	lower, err := fuseunion.OpenDir("/srv/root") // or OpenTree
	if err != nil {
		log.Fatal(err)
	}
	union, err := fuseunion.OpenUnion(lower, "upper", "work", fuseunion.UnionOptions{})
	if err != nil {
		log.Fatal(err)
	}
	err = fuseunion.ServeUnion(context.Background(), dev, union, fuseunion.ServeOptions{}) // until it is unmounted
	if err := errors.Join(err, union.Close(), lower.Close(), dev.Close()); err != nil {
		log.Fatal(err)
	}
}
