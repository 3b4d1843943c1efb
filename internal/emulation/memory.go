package emulation

import (
	"bytes"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pageSize = 4096 // at least: what is read at once lies within one page

// readString reads a path of a process.
func (n *notification) readString(at uint64) (string, error) {
	var path []byte
	for len(path) < unix.PathMax {
		var buf [512]byte
		part := buf[:min(len(buf), int(pageSize-at%pageSize))]
		if err := n.read(at, part); err != nil {
			return "", err
		}
		if end := bytes.IndexByte(part, 0); end >= 0 {
			return string(append(path, part[:end]...)), nil
		}
		path, at = append(path, part...), at+uint64(len(part))
	}
	return "", unix.ENAMETOOLONG
}

func (n *notification) read(at uint64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	got, err := unix.ProcessVMReadv(int(n.pid), local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	if err != nil || got != len(b) {
		return unix.EFAULT
	}
	return nil
}

// write puts bytes into a process that still waits.
func (w *worker) write(n *notification, at uint64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if !w.waits(n) {
		return unix.ESRCH
	}
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	put, err := unix.ProcessVMWritev(int(n.pid), local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	if err != nil || put != len(b) {
		return unix.EFAULT
	}
	return nil
}

// bytesOf is a value as it lies in memory, which is how the kernel gives it out.
func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }
