package fuseunion

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// storeMessage is a FUSE_NOTIFY_STORE as the kernel gets it.
type storeMessage struct {
	ino, off uint64
	data     string
}

// testPusher pushes to a socket instead of the kernel. stores ends the pusher and
// returns what it sent.
func testPusher(t *testing.T, tree *Tree) (p *pusher, stores func() []storeMessage) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20); err != nil {
			t.Fatal(err)
		}
	}
	p = newPusher(fds[0], tree, slog.New(slog.DiscardHandler))
	var all []storeMessage
	received := make(chan struct{})
	go func() {
		defer close(received)
		buf := make([]byte, 4<<20)
		for {
			n, err := unix.Read(fds[1], buf)
			if err != nil || n == 0 {
				return
			}
			le := binary.NativeEndian
			if n < storeFixed || le.Uint32(buf) != uint32(n) || le.Uint32(buf[4:]) != 4 || le.Uint64(buf[8:]) != 0 || le.Uint32(buf[32:]) != uint32(n-storeFixed) {
				t.Errorf("malformed message of %d bytes: %x", n, buf[:min(n, storeFixed)])
				continue
			}
			all = append(all, storeMessage{le.Uint64(buf[16:]), le.Uint64(buf[24:]), string(buf[storeFixed:n])})
		}
	}()
	p.wg.Go(p.run)
	return p, func() []storeMessage {
		for len(p.jobs) > 0 {
			runtime.Gosched()
		}
		p.stop()
		unix.Close(fds[0])
		<-received
		unix.Close(fds[1])
		return all
	}
}

func readNode(t *testing.T, p *pusher, tree *Tree, name string, off uint64, size int) {
	t.Helper()
	i, n, err := tree.resolve(name, true)
	if err != nil {
		t.Fatal(err)
	}
	p.read(i, &n, off, size)
}

func smallTree(t *testing.T) *Tree {
	var ents []ent
	for d := range 3 {
		for i := range 20 {
			ents = append(ents, file(fmt.Sprintf("d%d/f%02d", d, i), strings.Repeat(string(rune('a'+i)), 100*(i+1))))
		}
	}
	return openTars(t, makeTar(t, ents...))
}

func TestTheSecondSmallFileThatIsReadBringsThoseThatFollow(t *testing.T) {
	tree := smallTree(t)
	p, stores := testPusher(t, tree)
	readNode(t, p, tree, "d0/f00", 0, 4096)
	readNode(t, p, tree, "d0/f01", 0, 4096)
	got := stores()
	if len(got) < 18 {
		t.Fatalf("%d stores", len(got))
	}
	for k, s := range got[:18] {
		want := strings.Repeat(string(rune('a'+k+2)), 100*(k+3))
		i, _, err := tree.resolve(fmt.Sprintf("d0/f%02d", k+2), true)
		if err != nil || s.ino != uint64(i)+1 || s.off != 0 || s.data != want {
			t.Errorf("store %d: inode %d at %d of %d bytes; %v", k, s.ino, s.off, len(s.data), err)
		}
	}
	seen := map[uint64]bool{}
	for _, s := range got {
		if seen[s.ino] {
			t.Errorf("inode %d is pushed twice", s.ino)
		}
		seen[s.ino] = true
	}
}

func TestOneReadPushesNothing(t *testing.T) {
	tree := smallTree(t)
	p, stores := testPusher(t, tree)
	readNode(t, p, tree, "d1/f05", 0, 4096)
	readNode(t, p, tree, "d1/f05", 4096, 4096)
	if got := stores(); len(got) != 0 {
		t.Errorf("%d stores", len(got))
	}
}

func TestAReadOfALargeFileBringsItsWindowOnce(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", (3*window+1000)/16)
	tree := openTars(t, makeTar(t, file("big", content)))
	p, stores := testPusher(t, tree)
	readNode(t, p, tree, "big", window+8192, 4096)
	readNode(t, p, tree, "big", window+40960, 4096)
	readNode(t, p, tree, "big", 3*window+16, 4096)
	readNode(t, p, tree, "big", uint64(len(content)), 4096)
	got := stores()
	if len(got) != 2 || got[0].off != window || got[0].data != content[window:2*window] || got[1].off != 3*window || got[1].data != content[3*window:] {
		for _, s := range got {
			t.Errorf("stored %d bytes at %d", len(s.data), s.off)
		}
	}
}

func TestAStreamIsPushedAheadFurtherAndFurther(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 12*window/16)
	tree := openTars(t, makeTar(t, file("big", content)))
	p, stores := testPusher(t, tree)
	next := uint64(0) // the first window that was not pushed, as a stream would find it
	for _, want := range []uint64{firstWindows, 2 * firstWindows} {
		readNode(t, p, tree, "big", next*window, 128<<10)
		readNode(t, p, tree, "big", next*window+128<<10, 128<<10)
		next += want + 1
	}
	seen := map[uint64]bool{}
	for _, s := range stores() {
		if seen[s.off] || s.data != content[s.off:s.off+window] {
			t.Errorf("stored %d bytes at %d", len(s.data), s.off)
		}
		seen[s.off] = true
	}
	if want := 3 * firstWindows; len(seen) != want {
		t.Errorf("%d windows were pushed, want %d", len(seen), want)
	}
}

// What is pushed must be what is read, whoever comes first.
func TestPushedFilesReadAsTheyAre(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	var ents []ent
	want := map[string]string{}
	for i := range 400 {
		name := fmt.Sprintf("d%d/file-%03d", i/50, i)
		want[name] = strings.Repeat(fmt.Sprintf("%03d|", i), 1+i*37%6000)
		ents = append(ents, file(name, want[name]))
	}
	want["big"] = strings.Repeat("0123456789abcdef", 5*window/16+100)
	ents = append(ents, file("big", want["big"]))
	at := mountTars(t, makeTar(t, ents...))
	var wg sync.WaitGroup
	for c := range 32 { // 64 clients
		wg.Go(func() {
			for d := range 2 {
				entries, err := os.ReadDir(fmt.Sprintf("%s/d%d", at, (d+c)%8))
				if err != nil {
					t.Error(err)
				}
				for _, e := range entries {
					name := fmt.Sprintf("d%d/%s", (d+c)%8, e.Name())
					if got, err := os.ReadFile(at + "/" + name); err != nil || string(got) != want[name] {
						t.Errorf("%s: %d bytes, want %d; %v", name, len(got), len(want[name]), err)
					}
				}
			}
		})
		wg.Go(func() {
			f, err := os.Open(at + "/big")
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			buf := make([]byte, 5000)
			for k := range 60 {
				off := (k*7919*(c+3) + c) % (len(want["big"]) - len(buf))
				if _, err := f.ReadAt(buf, int64(off)); err != nil || !bytes.Equal(buf, []byte(want["big"][off:off+len(buf)])) {
					t.Errorf("big at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
}
