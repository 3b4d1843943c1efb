package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// list prints one line for each file below the directories, without crossing to other file systems: path, type, mode,
// owner, size, time, device, links, the first name of its inode, link target, attributes, digest of the content.
func list(args []string) (err error) {
	out := bufio.NewWriter(os.Stdout)
	defer func() { err = errors.Join(err, out.Flush()) }()
	for _, root := range args {
		l := lister{out: out, root: strings.TrimSuffix(root, "/"), first: map[inode]string{}}
		var top unix.Stat_t
		if err := unix.Lstat(root, &top); err != nil {
			return fmt.Errorf("%s: %w", root, err)
		}
		l.dev = top.Dev
		if err := filepath.WalkDir(root, l.visit); err != nil {
			return err
		}
	}
	return nil
}

type lister struct {
	out   io.Writer
	root  string
	dev   uint64
	first map[inode]string // its name met first
}

type inode struct{ dev, ino uint64 }

func (l *lister) visit(path string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("lstat %q: %w", path, err)
	}
	if st.Dev != l.dev && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fs.SkipDir // a mount; files may differ without being one, as overlayfs has it
	}
	name := strings.TrimPrefix(path, l.root)
	if name == "" {
		name = "/"
	}
	size, links, same, target, digest := st.Size, st.Nlink, "-", "-", "-"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		// A directory's size and link count are its file system's own affair.
		size, links = 0, 0
	case unix.S_IFLNK:
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	case unix.S_IFREG:
		if digest, err = fileDigest(path); err != nil {
			return err
		}
	}
	if st.Nlink > 1 && links > 0 {
		id := inode{st.Dev, st.Ino}
		if l.first[id] == "" {
			l.first[id] = name
		}
		same = l.first[id]
	}
	attrs, err := xattrs(path)
	if err != nil {
		return err
	}
	var rdev string
	if t := st.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		rdev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	_, err = fmt.Fprintf(l.out, "%q mode=%o owner=%d:%d size=%d mtime=%d.%09d rdev=%s nlink=%d same=%q target=%q xattr=%s sha256=%s\n",
		name, st.Mode, st.Uid, st.Gid, size, st.Mtim.Sec, st.Mtim.Nsec, rdev, links, same, target, attrs, digest)
	return err
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
