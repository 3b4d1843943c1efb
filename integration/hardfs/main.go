// Hardfs mounts a directory once more, by FUSE, as a file system that can do little: it stands in for the network and
// cluster file systems (NFS, Lustre, GPFS) that homes are on.
//
// It has no extended attributes, no hard links, no O_TMPFILE, no rename flags, no device nodes and no fallocate(2); it
// belongs to one user, and nobody else, the user's subordinate ids included, sees anything of it. What -allow
// names it has all the same. It says "mounted" and goes on until its input ends, so that it does not outlive a test.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func main() {
	allow := flag.String("allow", "", "comma list of xattr, link, tmpfile, rename, mknod, fallocate")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: hardfs [-allow LIST] SOURCE TARGET")
		os.Exit(2)
	}
	if err := serve(flag.Arg(0), flag.Arg(1), strings.Split(*allow, ",")); err != nil {
		fmt.Fprintf(os.Stderr, "hardfs: %v\n", err)
		os.Exit(1)
	}
}

func serve(source, target string, allowed []string) error {
	// A file's mode is what it is made with.
	unix.Umask(0)
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return err
	}
	root := &fs.LoopbackRoot{Path: source, Dev: st.Dev}
	top := &node{&fs.LoopbackNode{RootData: root}, allowed}
	root.RootNode = top
	lasting := time.Second
	_, err := fs.Mount(target, top, &fs.Options{
		EntryTimeout: &lasting, AttrTimeout: &lasting,
		MountOptions: fuse.MountOptions{FsName: source, Name: "hardfs", Options: []string{"default_permissions"}, MaxWrite: 1 << 20},
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	fmt.Println("mounted")
	_, err = io.Copy(io.Discard, os.Stdin)
	// Lazily: what lingers has files open.
	return errors.Join(err, exec.Command("fusermount3", "-u", "-z", target).Run())
}

// node is a file or directory that refuses what is not allowed.
type node struct {
	*fs.LoopbackNode
	allowed []string
}

// WrapChild makes what is below refuse as well.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{ops.(*fs.LoopbackNode), n.allowed}
}

func (n *node) may(what string) bool { return slices.Contains(n.allowed, what) }

func (n *node) Getxattr(ctx context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	if !n.may("xattr") {
		return 0, syscall.EOPNOTSUPP
	}
	return n.LoopbackNode.Getxattr(ctx, attr, dest)
}

func (n *node) Listxattr(ctx context.Context, dest []byte) (uint32, syscall.Errno) {
	if !n.may("xattr") {
		return 0, syscall.EOPNOTSUPP
	}
	return n.LoopbackNode.Listxattr(ctx, dest)
}

func (n *node) Setxattr(ctx context.Context, attr string, data []byte, flags uint32) syscall.Errno {
	if !n.may("xattr") {
		return syscall.EOPNOTSUPP
	}
	return n.LoopbackNode.Setxattr(ctx, attr, data, flags)
}

func (n *node) Removexattr(ctx context.Context, attr string) syscall.Errno {
	if !n.may("xattr") {
		return syscall.EOPNOTSUPP
	}
	return n.LoopbackNode.Removexattr(ctx, attr)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	other, ok := target.(*node)
	if !ok || !n.may("link") {
		return nil, syscall.EPERM // as vfat has it, link(2)
	}
	return n.LoopbackNode.Link(ctx, other.LoopbackNode, name, out)
}

func (n *node) Tmpfile(ctx context.Context, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if !n.may("tmpfile") {
		return nil, nil, 0, syscall.EOPNOTSUPP
	}
	return n.LoopbackNode.Tmpfile(ctx, flags, mode, out)
}

func (n *node) Mknod(ctx context.Context, name string, mode, dev uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if kind := mode & unix.S_IFMT; (kind == unix.S_IFCHR || kind == unix.S_IFBLK) && !n.may("mknod") {
		return nil, syscall.EPERM
	}
	return n.LoopbackNode.Mknod(ctx, name, mode, dev, out)
}

func (n *node) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if flags != 0 && !n.may("rename") {
		return syscall.EINVAL
	}
	other, ok := parent.(*node)
	if !ok {
		return syscall.EXDEV
	}
	return n.LoopbackNode.Rename(ctx, name, other.LoopbackNode, newName, flags)
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, more, errno := n.LoopbackNode.Open(ctx, flags)
	return n.file(f), more, errno
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	in, f, more, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return in, n.file(f), more, errno
}

// CopyFileRange leaves the copying to the kernel, by pages.
func (n *node) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.ENOSYS
}

// file is an open file without fallocate(2).
type file struct{ *fs.LoopbackFile }

func (n *node) file(f fs.FileHandle) fs.FileHandle {
	l, ok := f.(*fs.LoopbackFile)
	if !ok || n.may("fallocate") {
		return f
	}
	return &file{l}
}

// Allocate is fallocate(2).
func (f *file) Allocate(context.Context, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}
