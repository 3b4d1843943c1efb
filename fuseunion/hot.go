package fuseunion

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// hot takes apart the requests that programs wait for most; all others, INIT among them, are go-fuse's. That
// keeps an object, a channel and a place in a list of each request, by which it could be interrupted, which
// nothing here can be, and makes one buffer of several, which here is one from the beginning.
type hot struct {
	fs       fuse.RawFileSystem
	noXattrs bool // GETXATTR is go-fuse's too
	failed   func(any) fuse.Status

	h       *fuse.InHeader
	in, out []byte
}

const (
	inHeader  = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeader = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// hotOps are the handlers, by opcode. They return the size of what follows the header in out; ok is
// false for a request that is too short, about which go-fuse knows what to say.
var hotOps = [...]func(r *hot) (st fuse.Status, size int, ok bool){
	1:  (*hot).lookup,
	3:  (*hot).getattr,
	4:  (*hot).setattr,
	5:  (*hot).readlink,
	8:  (*hot).mknod,
	9:  (*hot).mkdir,
	10: (*hot).unlink,
	15: (*hot).read,
	16: (*hot).write,
	22: (*hot).getxattr,
	28: (*hot).readdir,
	44: (*hot).readdir, // READDIRPLUS
}

// Those that are not answered.
const (
	opForget      = 2
	opInterrupt   = 36
	opBatchForget = 42
)

// answer answers the request in, writing to out, and returns the size of the answer, which may be none; ok is false if the
// request is left to go-fuse.
func (r *hot) answer(in, out []byte) (size int, ok bool) {
	if len(in) < inHeader {
		return 0, false
	}
	r.h, r.in, r.out = (*fuse.InHeader)(unsafe.Pointer(&in[0])), in, out
	op := r.h.Opcode
	switch op {
	case opInterrupt:
		return 0, true
	case opForget, opBatchForget:
		return 0, r.forget()
	}
	if uint64(op) >= uint64(len(hotOps)) || hotOps[op] == nil || r.h.TotalExtlen != 0 {
		return 0, false
	}
	defer func() {
		if p := recover(); p != nil {
			size, ok = r.reply(r.failed(p), 0), true
		}
	}()
	st, size, ok := hotOps[op](r)
	if !ok {
		return 0, false
	}
	return r.reply(st, size), true
}

// reply fills in the header of an answer.
func (r *hot) reply(st fuse.Status, size int) int {
	if st != fuse.OK {
		size = 0
	}
	*(*fuse.OutHeader)(unsafe.Pointer(&r.out[0])) = fuse.OutHeader{Length: uint32(outHeader + size), Status: int32(-st), Unique: r.h.Unique}
	return outHeader + size
}

// request is what a request begins with, and what follows it; nil if that is not all there.
func request[T any](r *hot) (t *T, rest []byte) {
	size := int(unsafe.Sizeof(*t))
	if len(r.in) < size {
		return nil, nil
	}
	return (*T)(unsafe.Pointer(&r.in[0])), r.in[size:]
}

// result is where the body of an answer goes, and its size.
func result[T any](r *hot) (t *T, size int) {
	size = int(unsafe.Sizeof(*t))
	clear(r.out[outHeader : outHeader+size])
	return (*T)(unsafe.Pointer(&r.out[outHeader])), size
}

// nameOf is a name with a NUL behind it, as it lies in the buffer; empty if there is none.
func nameOf(b []byte) string {
	n := bytes.IndexByte(b, 0)
	if n <= 0 {
		return ""
	}
	return unsafe.String(&b[0], n)
}

// keptName is a name that outlives the request.
func keptName(b []byte) string { return string([]byte(nameOf(b))) }

func (r *hot) forget() bool {
	if r.h.Opcode == opForget {
		in, _ := request[fuse.ForgetIn](r)
		if in != nil {
			r.fs.Forget(in.NodeId, in.Nlookup)
		}
		return in != nil
	}
	const head, one = 8, 16 // struct fuse_batch_forget_in and fuse_forget_one
	if len(r.in) < inHeader+head {
		return false
	}
	le, b := binary.NativeEndian, r.in[inHeader+head:]
	for n := le.Uint32(r.in[inHeader:]); n > 0 && len(b) >= one; n-- {
		r.fs.Forget(le.Uint64(b), le.Uint64(b[8:]))
		b = b[one:]
	}
	return true
}

// lookup does not copy the name, which no file system here keeps.
func (r *hot) lookup() (fuse.Status, int, bool) {
	name := nameOf(r.in[inHeader:])
	if name == "" {
		return 0, 0, false
	}
	e, size := result[fuse.EntryOut](r)
	return r.fs.Lookup(nil, r.h, name, e), size, true
}

func (r *hot) getattr() (fuse.Status, int, bool) {
	in, _ := request[fuse.GetAttrIn](r)
	if in == nil {
		return 0, 0, false
	}
	a, size := result[fuse.AttrOut](r)
	return r.fs.GetAttr(nil, in, a), size, true
}

func (r *hot) setattr() (fuse.Status, int, bool) {
	in, _ := request[fuse.SetAttrIn](r)
	if in == nil {
		return 0, 0, false
	}
	a, size := result[fuse.AttrOut](r)
	return r.fs.SetAttr(nil, in, a), size, true
}

func (r *hot) readlink() (fuse.Status, int, bool) {
	to, st := r.fs.Readlink(nil, r.h)
	return st, copy(r.out[outHeader:], to), true
}

func (r *hot) readdir() (fuse.Status, int, bool) {
	in, _ := request[fuse.ReadIn](r)
	if in == nil || uint64(in.Size) > uint64(len(r.out)-outHeader) {
		return 0, 0, false
	}
	list := fuse.NewDirEntryList(r.out[outHeader:outHeader+int(in.Size)], in.Offset)
	var st fuse.Status
	if r.h.Opcode == 44 {
		st = r.fs.ReadDirPlus(nil, in, list)
	} else {
		st = r.fs.ReadDir(nil, in, list)
	}
	return st, len(list.Bytes()), true
}

func (r *hot) mknod() (fuse.Status, int, bool) {
	in, rest := request[fuse.MknodIn](r)
	name := keptName(rest)
	if name == "" {
		return 0, 0, false
	}
	e, size := result[fuse.EntryOut](r)
	return r.fs.Mknod(nil, in, name, e), size, true
}

func (r *hot) mkdir() (fuse.Status, int, bool) {
	in, rest := request[fuse.MkdirIn](r)
	name := keptName(rest)
	if name == "" {
		return 0, 0, false
	}
	e, size := result[fuse.EntryOut](r)
	return r.fs.Mkdir(nil, in, name, e), size, true
}

func (r *hot) unlink() (fuse.Status, int, bool) {
	name := keptName(r.in[inHeader:])
	if name == "" {
		return 0, 0, false
	}
	return r.fs.Unlink(nil, r.h, name), 0, true
}

func (r *hot) read() (fuse.Status, int, bool) {
	in, _ := request[fuse.ReadIn](r)
	if in == nil || uint64(in.Size) > uint64(len(r.out)-outHeader) {
		return 0, 0, false
	}
	got, st := r.fs.Read(nil, in, r.out[outHeader:outHeader+int(in.Size)])
	if st != fuse.OK {
		return st, 0, true
	}
	return st, got.Size(), true // the file systems here read to where they are told
}

func (r *hot) write() (fuse.Status, int, bool) {
	in, data := request[fuse.WriteIn](r)
	if in == nil || uint64(len(data)) != uint64(in.Size) {
		return 0, 0, false
	}
	w, size := result[fuse.WriteOut](r)
	var st fuse.Status
	w.Size, st = r.fs.Write(nil, in, data)
	return st, size, true
}

func (r *hot) getxattr() (st fuse.Status, size int, ok bool) {
	in, rest := request[fuse.GetXAttrIn](r)
	name := nameOf(rest)
	if r.noXattrs || name == "" || uint64(in.Size) > uint64(len(r.out)-outHeader) {
		return 0, 0, false
	}
	if in.Size > 0 {
		n, st := r.fs.GetXAttr(nil, r.h, name, r.out[outHeader:outHeader+int(in.Size)])
		return st, int(n), true
	}
	w, size := result[fuse.GetXAttrOut](r)
	if w.Size, st = r.fs.GetXAttr(nil, r.h, name, nil); st == fuse.ERANGE {
		st = fuse.OK // nobody has asked for the value
	}
	return st, size, true
}
