package fs

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// script makes random operations. Names are few, so that operations meet.
type script struct {
	*rand.Rand
	seq  int
	many bool // ids other than root's exist
}

const slots = 4

func (r *script) pick(all ...string) string { return all[r.IntN(len(all))] }

var dirNames = []string{"a", "b", "lib", "etc", "sub", "d"}

func (r *script) dirName() string { return dirNames[r.IntN(len(dirNames))] }

func (r *script) fileName() string {
	return r.pick("c", "e", "f", "g", "h", "i", "file1", "file2", "file3", "link", "caf\xe9\xff", strings.Repeat("n", 255))
}

// name is mostly a file's, since a tree whose directories all become files is dull.
func (r *script) name() string {
	if r.IntN(6) == 0 {
		return r.dirName()
	}
	return r.fileName()
}

func (r *script) above() string {
	path := ""
	for r.IntN(3) != 0 && strings.Count(path, "/") < 4 {
		path += r.dirName() + "/"
	}
	return path
}

func (r *script) path() string { return r.above() + r.name() }

func (r *script) dirPath() string {
	if r.IntN(6) == 0 {
		return r.path()
	}
	return r.above() + r.dirName()
}

// two are two paths of one kind, mostly: for a rename.
func (r *script) two() (string, string) {
	if r.IntN(3) == 0 {
		return r.dirPath(), r.dirPath()
	}
	return r.path(), r.path()
}

// openFlags for a file by path; O_NONBLOCK so that a FIFO does not block.
const openFlags = unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK

func (s *side) withFile(path string, flags int, fn func(fd int) result) result {
	fd, err := unix.Openat(s.root, path, flags|openFlags, 0o644)
	if err != nil {
		return errOnly(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errOnly(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return result{what: "no regular file"}
	}
	return fn(fd)
}

func (s *side) withSlot(k int, fn func(fd int) result) result {
	fd, ok := s.slots[k]
	if !ok {
		return result{what: "closed"}
	}
	return fn(fd)
}

func (r *script) bytes() []byte {
	n := []int{1, 10, 300, 4096, 5000, 70000}[r.IntN(6)]
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + (r.seq+i)%26)
	}
	return b
}

func (r *script) offset() int64 {
	return []int64{0, 0, 1, 100, 4095, 4096, 10000, 131072, 200001}[r.IntN(9)]
}

type maker func(r *script) op

// makers are the operations, each as often as it shall be likely.
func makers(r *script) []maker {
	m := []maker{
		makeFile, makeFile, makeFile, write, write, write, appendTo, truncate, unlink, unlink, unlink, mkdir, mkdir, rmdir,
		rename, rename, rename, rename2, link, link, symlink, chmod, chmod, chown, utimes, setxattr, removexattr, fallocate,
		openSlot, openSlot, writeSlot, writeSlot, readSlot, truncateSlot, statSlot, closeSlot, mmapSlot, tmpfile, linkSlot,
		fsync, fifo, stat, stat, list, readFile, copyRange, readlink, xattrSlot, mkdir, mkdir, makeFile, makeFile, symlink,
	}
	if r.IntN(3) == 0 {
		m = append(m, removeTree)
	}
	return m
}

func (r *script) next() op {
	r.seq++
	all := makers(r)
	o := all[r.IntN(len(all))](r)
	if r.many && r.IntN(8) == 0 {
		o.as = []int{33, 1000}[r.IntN(2)]
		o.text += fmt.Sprintf(" as %d", o.as)
	}
	return o
}

func makeFile(r *script) op {
	path, mode, b := r.path(), []uint32{0o644, 0o600, 0o755, 0o4755, 0o2711, 0o000}[r.IntN(6)], r.bytes()
	flags := unix.O_CREAT | unix.O_WRONLY | []int{unix.O_EXCL, 0, unix.O_TRUNC}[r.IntN(3)]
	return op{text: fmt.Sprintf("create %q %o flags %x %d bytes", path, mode, flags, len(b)), do: func(s *side) result {
		fd, err := unix.Openat(s.root, path, flags|openFlags, mode)
		if err != nil {
			return errOnly(err)
		}
		defer unix.Close(fd)
		n, err := unix.Write(fd, b)
		return result{err, fmt.Sprint(n)}
	}}
}

func write(r *script) op {
	path, b, off := r.path(), r.bytes(), r.offset()
	return op{text: fmt.Sprintf("write %q %d bytes at %d", path, len(b), off), do: func(s *side) result {
		return s.withFile(path, unix.O_WRONLY, func(fd int) result {
			n, err := unix.Pwrite(fd, b, off)
			return result{err, fmt.Sprint(n)}
		})
	}}
}

func appendTo(r *script) op {
	path, b := r.path(), r.bytes()
	return op{text: fmt.Sprintf("append %q %d bytes", path, len(b)), do: func(s *side) result {
		return s.withFile(path, unix.O_WRONLY|unix.O_APPEND, func(fd int) result {
			n, err := unix.Write(fd, b)
			return result{err, fmt.Sprint(n)}
		})
	}}
}

func truncate(r *script) op {
	path, size := r.path(), r.offset()
	return op{text: fmt.Sprintf("truncate %q to %d", path, size), do: func(s *side) result {
		return s.withFile(path, unix.O_WRONLY, func(fd int) result { return errOnly(unix.Ftruncate(fd, size)) })
	}}
}

func unlink(r *script) op {
	path := r.path()
	return op{text: fmt.Sprintf("unlink %q", path), do: func(s *side) result { return errOnly(unix.Unlinkat(s.root, path, 0)) }}
}

func mkdir(r *script) op {
	path, mode := r.dirPath(), []uint32{0o755, 0o700, 0o1777, 0o2775}[r.IntN(4)]
	return op{text: fmt.Sprintf("mkdir %q %o", path, mode), do: func(s *side) result { return errOnly(unix.Mkdirat(s.root, path, mode)) }}
}

func rmdir(r *script) op {
	path := r.dirPath()
	return op{text: fmt.Sprintf("rmdir %q", path), do: func(s *side) result {
		return errOnly(unix.Unlinkat(s.root, path, unix.AT_REMOVEDIR))
	}}
}

func rename(r *script) op {
	from, to := r.two()
	return op{text: fmt.Sprintf("rename %q %q", from, to), do: func(s *side) result {
		return errOnly(unix.Renameat(s.root, from, s.root, to))
	}}
}

func rename2(r *script) op {
	from, to := r.two()
	flags := []uint{unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[r.IntN(2)]
	return op{text: fmt.Sprintf("rename %q %q flags %x", from, to, flags), do: func(s *side) result {
		return errOnly(unix.Renameat2(s.root, from, s.root, to, flags))
	}}
}

func link(r *script) op {
	from, to := r.path(), r.path()
	return op{text: fmt.Sprintf("link %q %q", from, to), do: func(s *side) result {
		return errOnly(unix.Linkat(s.root, from, s.root, to, 0))
	}}
}

func symlink(r *script) op {
	path, target := r.path(), r.path()
	return op{text: fmt.Sprintf("symlink %q -> %q", path, target), do: func(s *side) result { return errOnly(unix.Symlinkat(target, s.root, path)) }}
}

func chmod(r *script) op {
	path, mode := r.path(), []uint32{0o644, 0o600, 0o755, 0o6755, 0o2711, 0o1777, 0o000, 0o444}[r.IntN(8)]
	if r.IntN(3) == 0 {
		path = r.dirPath()
	}
	return op{text: fmt.Sprintf("chmod %q %o", path, mode), do: func(s *side) result {
		return errOnly(s.notLink(path, func() error { return unix.Fchmodat(s.root, path, mode, 0) }))
	}}
}

// notLink keeps operations that follow links from leaving the tree.
func (s *side) notLink(path string, fn func() error) error {
	var st unix.Stat_t
	if err := unix.Fstatat(s.root, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.ELOOP
	}
	return fn()
}

func chown(r *script) op {
	path, uid, gid := r.path(), 0, 0
	if r.many {
		uid, gid = []int{0, 33, 1000, -1}[r.IntN(4)], []int{0, 33, 1000, -1}[r.IntN(4)]
	}
	if uid < 0 && gid < 0 {
		uid = 0 // nothing to change, on which overlayfs is stricter
	}
	return op{text: fmt.Sprintf("chown %q %d:%d", path, uid, gid), do: func(s *side) result {
		return errOnly(unix.Fchownat(s.root, path, uid, gid, unix.AT_SYMLINK_NOFOLLOW))
	}}
}

func utimes(r *script) op {
	path := r.path()
	ts := unix.Timespec{Sec: int64(1e9 + r.IntN(1e6)), Nsec: int64(r.IntN(1e9))}
	return op{text: fmt.Sprintf("utimes %q %d", path, ts.Sec), do: func(s *side) result {
		return errOnly(unix.UtimesNanoAt(s.root, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}}
}

func setxattr(r *script) op {
	path, name, value := r.path(), "user."+r.pick("a", "b", "c"), fmt.Sprint(r.seq)
	flags := []int{0, unix.XATTR_CREATE, unix.XATTR_REPLACE}[r.IntN(3)]
	return op{text: fmt.Sprintf("setxattr %q %s flags %d", path, name, flags), do: func(s *side) result {
		return errOnly(unix.Lsetxattr(filepath.Join(s.at, path), name, []byte(value), flags))
	}}
}

func removexattr(r *script) op {
	path, name := r.path(), "user."+r.pick("a", "b", "c")
	return op{text: fmt.Sprintf("removexattr %q %s", path, name), do: func(s *side) result {
		err := unix.Lremovexattr(filepath.Join(s.at, path), name)
		if err == unix.EOPNOTSUPP && s.name == "overlay" {
			err = unix.ENODATA // what overlayfs hears from an image without any attribute
		}
		return errOnly(err)
	}}
}

func fallocate(r *script) op {
	path, off := r.path(), r.offset()
	mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}[r.IntN(3)]
	return op{text: fmt.Sprintf("fallocate %q mode %x at %d", path, mode, off), do: func(s *side) result {
		return s.withFile(path, unix.O_RDWR, func(fd int) result { return errOnly(unix.Fallocate(fd, mode, off, 5000)) })
	}}
}

func openSlot(r *script) op {
	path, k, flags := r.path(), r.IntN(slots), []int{unix.O_RDWR, unix.O_RDONLY, unix.O_RDWR | unix.O_APPEND}[r.IntN(3)]
	return op{text: fmt.Sprintf("open %q as #%d flags %x", path, k, flags), do: func(s *side) result {
		fd, err := unix.Openat(s.root, path, flags|openFlags, 0)
		if err != nil {
			return errOnly(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			unix.Close(fd)
			return result{err, "no regular file"}
		}
		if old, ok := s.slots[k]; ok {
			unix.Close(old)
		}
		s.slots[k] = fd
		return result{}
	}}
}

func closeSlot(r *script) op {
	k := r.IntN(slots)
	return op{text: fmt.Sprintf("close #%d", k), do: func(s *side) result {
		return s.withSlot(k, func(fd int) result {
			delete(s.slots, k)
			return errOnly(unix.Close(fd))
		})
	}}
}

func writeSlot(r *script) op {
	k, b, off := r.IntN(slots), r.bytes(), r.offset()
	return op{text: fmt.Sprintf("write #%d %d bytes at %d", k, len(b), off), do: func(s *side) result {
		return s.withSlot(k, func(fd int) result {
			n, err := unix.Pwrite(fd, b, off)
			return result{err, fmt.Sprint(n)}
		})
	}}
}

func readSlot(r *script) op {
	k, off := r.IntN(slots), r.offset()
	return op{text: fmt.Sprintf("read #%d at %d", k, off), do: func(s *side) result {
		return s.withSlot(k, func(fd int) result {
			b := make([]byte, 10000)
			n, err := unix.Pread(fd, b, off)
			return result{err, fmt.Sprintf("%d %.60q", n, b[:max(n, 0)])}
		})
	}}
}

func truncateSlot(r *script) op {
	k, size := r.IntN(slots), r.offset()
	return op{text: fmt.Sprintf("truncate #%d to %d", k, size), do: func(s *side) result {
		return s.withSlot(k, func(fd int) result { return errOnly(unix.Ftruncate(fd, size)) })
	}}
}

func statSlot(r *script) op {
	k := r.IntN(slots)
	return op{text: fmt.Sprintf("stat #%d", k), do: func(s *side) result {
		return s.withSlot(k, func(fd int) result {
			var st unix.Stat_t
			err := unix.Fstat(fd, &st)
			return result{err, fmt.Sprintf("%o %d:%d %d n=%d", st.Mode, st.Uid, st.Gid, st.Size, st.Nlink)}
		})
	}}
}

func mmapSlot(r *script) op {
	k, c := r.IntN(slots), byte('A'+r.IntN(26))
	return op{text: fmt.Sprintf("mmap #%d write %c", k, c), do: func(s *side) result {
		return s.withSlot(k, func(fd int) result {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 {
				return result{err, "empty"}
			}
			b, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return errOnly(err)
			}
			b[0], b[len(b)-1] = c, c
			return errOnly(unix.Munmap(b))
		})
	}}
}

func xattrSlot(r *script) op {
	k, value := r.IntN(slots), fmt.Sprint(r.seq)
	return op{text: fmt.Sprintf("fsetxattr #%d", k), do: func(s *side) result {
		return s.withSlot(k, func(fd int) result { return errOnly(unix.Fsetxattr(fd, "user.slot", []byte(value), 0)) })
	}}
}

func tmpfile(r *script) op {
	dir, k, b := filepath.Dir(r.path()), r.IntN(slots), r.bytes()
	return op{text: fmt.Sprintf("O_TMPFILE in %q as #%d", dir, k), do: func(s *side) result {
		fd, err := unix.Openat(s.root, dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o640)
		if err != nil {
			return errOnly(err)
		}
		if old, ok := s.slots[k]; ok {
			unix.Close(old)
		}
		s.slots[k] = fd
		n, err := unix.Write(fd, b)
		return result{err, fmt.Sprint(n)}
	}}
}

func linkSlot(r *script) op {
	k, path := r.IntN(slots), r.path()
	return op{text: fmt.Sprintf("link #%d to %q", k, path), do: func(s *side) result {
		return s.withSlot(k, func(fd int) result {
			return errOnly(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), s.root, path, unix.AT_SYMLINK_FOLLOW))
		})
	}}
}

func fsync(r *script) op {
	path := r.path()
	return op{text: fmt.Sprintf("fsync %q", path), do: func(s *side) result {
		fd, err := unix.Openat(s.root, path, unix.O_RDONLY|openFlags, 0)
		if err != nil {
			return errOnly(err)
		}
		defer unix.Close(fd)
		return errOnly(unix.Fsync(fd))
	}}
}

func fifo(r *script) op {
	path := r.path()
	return op{text: fmt.Sprintf("mkfifo %q", path), do: func(s *side) result {
		return errOnly(unix.Mknodat(s.root, path, unix.S_IFIFO|0o640, 0))
	}}
}

func stat(r *script) op {
	path := r.path()
	return op{text: fmt.Sprintf("stat %q", path), do: func(s *side) result {
		var st unix.Stat_t
		if err := unix.Fstatat(s.root, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return errOnly(err)
		}
		what := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			what += fmt.Sprintf(" %d n=%d", st.Size, st.Nlink)
		}
		return result{what: what}
	}}
}

func list(r *script) op {
	path := filepath.Dir(r.above() + "x")
	return op{text: fmt.Sprintf("list %q", path), do: func(s *side) result {
		fd, err := unix.Openat(s.root, path, unix.O_RDONLY|unix.O_DIRECTORY|openFlags, 0)
		if err != nil {
			return errOnly(err)
		}
		defer unix.Close(fd)
		names, err := readNames(fd)
		return result{err, fmt.Sprintf("%q", names)}
	}}
}

func readFile(r *script) op {
	path := r.path()
	return op{text: fmt.Sprintf("read %q", path), do: func(s *side) result {
		return s.withFile(path, unix.O_RDONLY, func(fd int) result {
			b := make([]byte, 300000)
			n, err := unix.Read(fd, b)
			sum := 0
			for i, c := range b[:max(n, 0)] {
				sum = (sum + int(c)*(i+1)) % 1000003
			}
			return result{err, fmt.Sprint(n, sum)}
		})
	}}
}

func copyRange(r *script) op {
	from, to := r.path(), r.path()
	a, b, n := r.offset(), r.offset(), 1+r.IntN(20000)
	return op{text: fmt.Sprintf("copy_file_range %q %d to %q %d, %d bytes", from, a, to, b, n), do: func(s *side) result {
		return s.withFile(from, unix.O_RDONLY, func(src int) result {
			return s.withFile(to, unix.O_WRONLY, func(dst int) result {
				at, out, left := a, b, n
				for left > 0 {
					m, err := unix.CopyFileRange(src, &at, dst, &out, left, 0)
					if err == unix.EXDEV && (s.name == "overlay" || s.name == "kernel") {
						// Between image and upper directory overlayfs has two file systems. It has taken set-id bits
						// from the file by then, so nobody may leave it at that.
						m, err = copyByHand(src, dst, &at, &out, left)
					}
					if err != nil {
						return result{err, fmt.Sprint(n - left)}
					}
					if m == 0 {
						break
					}
					left -= m
				}
				return result{what: fmt.Sprint(n - left)}
			})
		})
	}}
}

// copyByHand is what cp(1) does after an EXDEV.
func copyByHand(src, dst int, from, to *int64, n int) (int, error) {
	b := make([]byte, n)
	n, err := unix.Pread(src, b, *from)
	if err != nil || n == 0 {
		return 0, err
	}
	n, err = unix.Pwrite(dst, b[:n], *to)
	*from, *to = *from+int64(max(n, 0)), *to+int64(max(n, 0))
	return max(n, 0), err
}

func readlink(r *script) op {
	path := r.path()
	return op{text: fmt.Sprintf("readlink %q", path), do: func(s *side) result {
		b := make([]byte, 1000)
		n, err := unix.Readlinkat(s.root, path, b)
		return result{err, string(b[:max(n, 0)])}
	}}
}

func removeTree(r *script) op {
	path := r.dirPath()
	return op{text: fmt.Sprintf("rm -rf %q", path), do: func(s *side) result { return errOnly(s.removeAll(s.root, path)) }}
}

// removeAll is rm -rf, in the order of names, so that all sides fail at the same place.
func (s *side) removeAll(dirfd int, path string) error {
	err := unix.Unlinkat(dirfd, path, 0)
	if err != unix.EISDIR {
		return err
	}
	fd, err := unix.Openat(dirfd, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := s.removeAll(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dirfd, path, unix.AT_REMOVEDIR)
}
