package rootfs

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A container's writable layer holds files of any id of its user namespace,
// which on the host are subordinate ids: not the user's, who then could not even
// remove them. While the container does not run, its layer is parked: all files
// belong to the user, all directories are his to change, and a journal beside
// the layer keeps what they were. Unpark puts it back before the next start.
//
// The journal is complete and on disk before the first file is changed, and what
// a broken-off Park or Unpark left is taken up by the next: nothing is lost.

// parked is one line of the journal, ended by a NUL byte, since a path may hold
// anything else:
//
//	UID GID MODE CAPABILITY PATH
//
// in the namespace's ids, mode in octal, the security.capability attribute in
// hexadecimal or "-", the path relative to the layer.
type parked struct {
	uid, gid, mode uint32
	capability     []byte
	path           string
}

// Park gives every file below dir to uid and gid. It runs as root of the
// container's user namespace, or as the user where that has but one id.
func Park(dir, journal string, uid, gid int) error {
	known, err := readJournal(journal)
	if err != nil {
		return err
	}
	entries, err := foreign(dir, uint32(uid), uint32(gid), known)
	if err != nil {
		return fmt.Errorf("park %s: %w", dir, err)
	}
	if len(entries) == 0 {
		return nil
	}
	if err := writeJournal(journal, append(known, entries...)); err != nil {
		return err
	}
	for _, e := range entries {
		if err := e.park(dir, uid, gid); err != nil {
			return fmt.Errorf("park %s: %w", e.path, err)
		}
	}
	return nil
}

// Unpark undoes Park and removes the journal.
func Unpark(dir, journal string) error {
	entries, err := readJournal(journal)
	if err != nil {
		return err
	}
	// Children first: a directory may become one that is not to be entered.
	for i := len(entries) - 1; i >= 0; i-- {
		if err := entries[i].unpark(dir); err != nil {
			return fmt.Errorf("unpark %s: %w", entries[i].path, err)
		}
	}
	if err := os.Remove(journal); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpark: %w", err)
	}
	return nil
}

// ownerAll is what the owner needs to read, change and enter a directory.
const ownerAll = 0o700

// foreign lists what is not uid's and gid's, or a directory closed to its owner,
// parents first. Paths that are known are left out: they keep their first entry.
func foreign(dir string, uid, gid uint32, known []parked) ([]parked, error) {
	skip := map[string]bool{}
	for _, e := range known {
		skip[e.path] = true
	}
	var all []parked
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		closed := st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&ownerAll != ownerAll
		rel, err := filepath.Rel(dir, path)
		if err != nil || skip[rel] || st.Uid == uid && st.Gid == gid && !closed {
			return err
		}
		e := parked{uid: st.Uid, gid: st.Gid, mode: st.Mode, path: rel}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			if e.capability, err = getCapability(path); err != nil {
				return err
			}
		}
		all = append(all, e)
		return nil
	})
	return all, err
}

const capabilityXattr = "security.capability"

func getCapability(path string) ([]byte, error) {
	value := make([]byte, 64) // VFS_CAP_REVISION_3 has 24 bytes
	n, err := unix.Lgetxattr(path, capabilityXattr, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("getxattr: %w", err)
	}
	return value[:n], nil
}

func (e parked) park(dir string, uid, gid int) error {
	path := filepath.Join(dir, e.path)
	if err := unix.Lchown(path, uid, gid); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if e.mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if err := unix.Chmod(path, e.mode&0o7777|ownerAll); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return nil
}

func (e parked) unpark(dir string) error {
	path := filepath.Join(dir, e.path)
	if err := unix.Lchown(path, int(e.uid), int(e.gid)); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if e.mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	// chown has cleared set-id bits and capabilities.
	if err := unix.Chmod(path, e.mode&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if len(e.capability) == 0 {
		return nil
	}
	if err := unix.Lsetxattr(path, capabilityXattr, e.capability, 0); err != nil {
		return fmt.Errorf("setxattr: %w", err)
	}
	return nil
}

func writeJournal(name string, entries []parked) error {
	var b bytes.Buffer
	for _, e := range entries {
		capability := "-"
		if len(e.capability) > 0 {
			capability = hex.EncodeToString(e.capability)
		}
		fmt.Fprintf(&b, "%d %d %o %s %s\x00", e.uid, e.gid, e.mode, capability, e.path)
	}
	tmp := name + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	_, err = b.WriteTo(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := os.Rename(tmp, name); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

func readJournal(name string) ([]parked, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	var all []parked
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadString(0)
		if errors.Is(err, io.EOF) && line == "" {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read journal: %w", err)
		}
		e, err := parseParked(line[:len(line)-1])
		if err != nil {
			return nil, fmt.Errorf("read journal %s: %w", name, err)
		}
		all = append(all, e)
	}
}

func parseParked(line string) (parked, error) {
	var e parked
	fields := bytes.SplitN([]byte(line), []byte(" "), 5)
	if len(fields) != 5 {
		return e, fmt.Errorf("bad line %q", line)
	}
	if _, err := fmt.Sscanf(line, "%d %d %o", &e.uid, &e.gid, &e.mode); err != nil {
		return e, fmt.Errorf("bad line %q: %w", line, err)
	}
	if c := string(fields[3]); c != "-" {
		var err error
		if e.capability, err = hex.DecodeString(c); err != nil {
			return e, fmt.Errorf("bad line %q: %w", line, err)
		}
	}
	e.path = string(fields[4])
	if !filepath.IsLocal(e.path) {
		return e, fmt.Errorf("path %q leads out of the layer", e.path)
	}
	return e, nil
}
