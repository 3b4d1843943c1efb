package fuseunion

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// echoFS answers with what it was asked: each byte of an answer depends on all that came in.
type echoFS struct{ fuse.RawFileSystem }

// echo fills out with what follows from the request, of which in is a part, and the rest.
func echo[In, Out any](in *In, out *Out, rest ...string) fuse.Status {
	h := fnv.New64a()
	h.Write(unsafe.Slice((*byte)(unsafe.Pointer(in)), unsafe.Sizeof(*in)))
	fmt.Fprintf(h, "%q", rest)
	sum := h.Sum64()
	if sum%5 == 0 {
		return fuse.Status(sum%100 + 1)
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(out)), unsafe.Sizeof(*out))
	for i := range b {
		b[i] = byte(sum >> (i % 8 * 8))
	}
	return fuse.OK
}

func (echoFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return echo(h, out, name)
}

func (echoFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return echo(in, out)
}

func (echoFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return echo(in, out)
}

func (echoFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return echo(in, out, name)
}

func (echoFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return echo(in, out, name)
}

func (echoFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return echo(h, new(byte), name)
}

func (echoFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	var b [32]byte
	st := echo(in, &b)
	return readResult(copy(buf, b[:])), st
}

func (echoFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	var b [32]byte
	st := echo(h, &b)
	return b[:], st
}

func (echoFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	var ino uint64
	st := echo(in, &ino)
	for out.AddDirEntry(fuse.DirEntry{Name: fmt.Sprint(ino), Ino: ino, Mode: 0o100644, Off: ino}) {
		ino++
	}
	return st
}

func (echoFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	var e fuse.EntryOut
	st := echo(in, &e)
	for range 3 {
		if p := out.AddDirLookupEntry(fuse.DirEntry{Name: fmt.Sprint(e.Ino), Ino: e.Ino, Mode: 0o100644, Off: e.Ino}); p != nil {
			*p = e
		}
	}
	return st
}

func (echoFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	var n uint32
	st := echo(in, &n, string(data))
	return n, st
}

func (echoFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	var b [32]byte
	if st := echo(h, &b, name); st != fuse.OK {
		return 0, st
	}
	if len(dest) < len(b) {
		return uint32(len(b)), fuse.ERANGE
	}
	return uint32(copy(dest, b[:])), fuse.OK
}

func TestHotRequestsAreAnsweredAsByGoFuse(t *testing.T) {
	opt := &fuse.MountOptions{MaxWrite: maxRequest, Logger: log.New(io.Discard, "", 0)}
	opt.PanicHandler = panicHandler(opt.Logger)
	p := protocolOf(echoFS{fuse.NewDefaultRawFileSystem()}, opt)
	h := hot{fs: p.fs, failed: opt.PanicHandler}
	le := binary.NativeEndian
	r := rand.New(rand.NewPCG(3, 4))
	handled := map[uint32]int{}
	const size = 8 << 10
	theirs, mine := make([]byte, size), make([]byte, size)
	for range 50_000 {
		op := r.Uint32N(50)
		b := make([]byte, inHeader+r.IntN(150))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		// Sizes that fit, now and then, and no extensions.
		le.PutUint32(b, uint32(len(b)))
		le.PutUint32(b[4:], op)
		le.PutUint32(b[36:], 0)
		switch op {
		case 15, 22, 28, 44:
			for _, at := range []int{inHeader, inHeader + 16} {
				if len(b) >= at+4 {
					le.PutUint32(b[at:], r.Uint32N(2)*r.Uint32N(1000))
				}
			}
		case 16:
			if head := int(unsafe.Sizeof(fuse.WriteIn{})); len(b) >= head {
				le.PutUint32(b[inHeader+16:], uint32(len(b)-head))
			}
		case opForget, opBatchForget, opInterrupt, 26, 38: // nothing to compare
			continue
		}
		if _, known := handled[op]; !known && (op >= uint32(len(hotOps)) || hotOps[op] == nil) {
			continue
		}
		for i := range mine {
			mine[i] = 0xee
		}
		m, ok := h.answer(bytes.Clone(b), mine)
		if !ok {
			continue
		}
		handled[op]++
		n, st := p.ps.HandleRequest([][]byte{b}, [][]byte{theirs})
		if st != fuse.OK || !bytes.Equal(mine[:m], theirs[:n]) {
			t.Fatalf("opcode %d, request %x\nanswer     %x\nof go-fuse %x (%v)", op, b, mine[:m], theirs[:n], st)
		}
	}
	for op, fn := range hotOps {
		if fn != nil && handled[uint32(op)] < 100 {
			t.Errorf("opcode %d: only %d requests were answered", op, handled[uint32(op)])
		}
	}
}

// forgetFS counts what is forgotten.
type forgetFS struct {
	fuse.RawFileSystem
	forgot map[uint64]uint64
}

func (f *forgetFS) Forget(id, lookups uint64) { f.forgot[id] += lookups }

func TestForgetsAreNotAnswered(t *testing.T) {
	fs := &forgetFS{fuse.NewDefaultRawFileSystem(), map[uint64]uint64{}}
	h := hot{fs: fs}
	le := binary.NativeEndian
	request := func(op uint32, node uint64, words ...uint64) []byte {
		b := make([]byte, inHeader)
		le.PutUint32(b[4:], op)
		le.PutUint64(b[16:], node)
		for _, w := range words {
			b = le.AppendUint64(b, w)
		}
		return b
	}
	for _, b := range [][]byte{
		request(opForget, 7, 3),
		request(opBatchForget, 0, 2, 7, 1, 8, 5),
		request(opBatchForget, 0, 3, 9, 1, 10), // says more than there is
		request(opInterrupt, 0, 1),
	} {
		if n, ok := h.answer(b, make([]byte, 100)); n != 0 || !ok {
			t.Errorf("request %x: an answer of %d bytes, %v", b, n, ok)
		}
	}
	if want := fmt.Sprint(map[uint64]uint64{7: 4, 8: 5, 9: 1}); fmt.Sprint(fs.forgot) != want {
		t.Errorf("forgot %v, want %s", fs.forgot, want)
	}
}

// badFS panics.
type badFS struct{ fuse.RawFileSystem }

func (badFS) GetAttr(<-chan struct{}, *fuse.GetAttrIn, *fuse.AttrOut) fuse.Status {
	panic("a bad page")
}

func TestAPanicInARequestIsItsError(t *testing.T) {
	h := hot{fs: badFS{fuse.NewDefaultRawFileSystem()}, failed: panicHandler(log.New(io.Discard, "", 0))}
	b := make([]byte, unsafe.Sizeof(fuse.GetAttrIn{}))
	binary.NativeEndian.PutUint32(b[4:], 3)
	binary.NativeEndian.PutUint64(b[8:], 5)
	out := make([]byte, 200)
	n, ok := h.answer(b, out)
	got := *(*fuse.OutHeader)(unsafe.Pointer(&out[0]))
	if want := (fuse.OutHeader{Length: 16, Status: -int32(fuse.EIO), Unique: 5}); !ok || n != 16 || got != want {
		t.Errorf("answer of %d bytes %+v, want %+v", n, got, want)
	}
}

// BenchmarkRequest is what taking a request apart costs, beside what it is about.
func BenchmarkRequest(b *testing.B) {
	opt := &fuse.MountOptions{MaxWrite: maxRequest, Logger: log.New(io.Discard, "", 0)}
	p := protocolOf(&forgetFS{RawFileSystem: fuse.NewDefaultRawFileSystem()}, opt)
	in := make([]byte, inHeader, inHeader+8)
	binary.NativeEndian.PutUint32(in[4:], 1)
	in = append(in, "name\x00"...)
	out := make([]byte, 4096)
	b.Run("here", func(b *testing.B) {
		b.ReportAllocs()
		h := hot{fs: p.fs}
		for b.Loop() {
			if _, ok := h.answer(in, out); !ok {
				b.Fatal("not answered")
			}
		}
	})
	b.Run("go-fuse", func(b *testing.B) {
		b.ReportAllocs()
		ins, outs := [][]byte{in}, [][]byte{out}
		for b.Loop() {
			if _, st := p.ps.HandleRequest(ins, outs); st != fuse.OK {
				b.Fatal(st)
			}
		}
	})
}
