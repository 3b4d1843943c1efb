package fuseunion

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// machine is a union without a mount, and a machine that can be started again.
type machine struct {
	t    *testing.T
	dir  string
	boot string
	low  *Dir
	u    *Union
}

func newMachine(t *testing.T, content []byte) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), boot: "first"}
	for _, d := range []string{"lower", "upper", "work"} {
		must(t, os.Mkdir(filepath.Join(m.dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(m.dir, "lower", "file"), content, 0o644))
	m.open()
	t.Cleanup(m.close)
	return m
}

func (m *machine) open() {
	m.t.Helper()
	var err error
	if m.low, err = OpenDir(filepath.Join(m.dir, "lower")); err != nil {
		m.t.Fatal(err)
	}
	m.u, err = OpenUnion(m.low, filepath.Join(m.dir, "upper"), filepath.Join(m.dir, "work"), UnionOptions{LazySize: 1})
	if err != nil {
		m.t.Fatal(err)
	}
	m.u.boot = []byte(m.boot)
}

func (m *machine) close() {
	m.t.Helper()
	must(m.t, m.u.Close())
	must(m.t, m.low.Close())
}

// file looks the file up and returns its node id.
func (m *machine) file() uint64 {
	m.t.Helper()
	var out fuse.EntryOut
	if err := m.u.lookup(1, "file", &out); err != nil || out.NodeId == 0 {
		m.t.Fatalf("lookup: node %d, %v", out.NodeId, err)
	}
	return out.NodeId
}

func (m *machine) write(off uint64, s string) {
	m.t.Helper()
	in := &fuse.WriteIn{Offset: off}
	in.NodeId = m.file()
	if n, err := m.u.write(in, []byte(s)); err != nil || int(n) != len(s) {
		m.t.Fatalf("write: %d, %v", n, err)
	}
}

func (m *machine) read() []byte {
	m.t.Helper()
	b := make([]byte, 4*lazyChunk)
	n, err := m.u.read(m.file(), b, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	return b[:n]
}

// Of a file that is copied up lazily, what was written survives the death of the
// server; after a loss of power a chunk is either what was synced or what the lower file has:
// data that did not reach the disk is no zeros in the middle of a file.
func TestLazyFileAfterALossOfPower(t *testing.T) {
	content := bytes.Repeat([]byte("lower"), 3*lazyChunk/5)
	m := newMachine(t, content)
	m.write(10, "synced")
	must(t, m.u.sync(m.file(), true))
	m.write(lazyChunk+20, "written")
	want := bytes.Clone(content)
	copy(want[10:], "synced")
	lost := bytes.Clone(want)
	copy(want[lazyChunk+20:], "written")
	if !bytes.Equal(m.read(), want) {
		t.Fatal("content is wrong at once")
	}
	m.close()
	m.open()
	if !bytes.Equal(m.read(), want) {
		t.Fatal("content is wrong after the server's death")
	}
	m.close()
	m.boot = "second"
	// What the disk never got.
	f, err := os.OpenFile(filepath.Join(m.dir, "upper", "file"), os.O_WRONLY, 0)
	must(t, err)
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, lazyChunk, lazyChunk))
	must(t, f.Close())
	m.open()
	if !bytes.Equal(m.read(), lost) {
		t.Fatal("content is wrong after a loss of power")
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(m.dir, "upper", "file"), &st))
	if st.Size != int64(len(content)) || st.Blocks*512 > 2*lazyChunk {
		t.Errorf("the copy has %d bytes in %d blocks", st.Size, st.Blocks)
	}
}
