package fuseunion

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

func workDir(t *testing.T) (fd int, path string) {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, filepath.Join(dir, ledgerName)
}

// Wherever a loss of power cuts the ledger off, what comes before is valid.
func TestLedgerCutOffAnywhere(t *testing.T) {
	fd, path := workDir(t)
	l, err := openLedger(fd)
	if err != nil {
		t.Fatal(err)
	}
	states := map[int64]map[uint64]meta{0: {}}
	for i := range uint64(20) {
		m := meta{has: metaOwner | metaOrigin, uid: uint32(i), mode: unix.S_IFREG, origin: "/a/b"}
		if i%5 == 4 {
			m = meta{}
		}
		if err := l.set(1<<56|i/2, &m); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		now := map[uint64]meta{}
		for k, v := range l.files {
			now[k] = v
		}
		states[fi.Size()] = now
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for n := range int64(len(whole)) + 1 {
		if _, ok := states[n]; ok {
			last = n
		}
		for _, tail := range [][]byte{nil, make([]byte, 100)} { // a file may have grown before its data came
			if err := os.WriteFile(path, append(append([]byte{}, whole[:n]...), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := openLedger(fd)
			if err != nil {
				t.Fatalf("cut at %d: %v", n, err)
			}
			if !reflect.DeepEqual(l.files, states[last]) {
				t.Fatalf("cut at %d: %v, want %v", n, l.files, states[last])
			}
			// What is appended then is found again.
			if err := l.setLinks("/x", 3); err != nil {
				t.Fatal(err)
			}
			if err := l.close(); err != nil {
				t.Fatal(err)
			}
			if l, err = openLedger(fd); err != nil || l.linksLeft("/x", 9) != 3 {
				t.Fatalf("cut at %d: after an append: %v", n, err)
			}
			if err := l.close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestLedgerIsRewrittenWhenMostOfItIsOld(t *testing.T) {
	fd, path := workDir(t)
	l, err := openLedger(fd)
	if err != nil {
		t.Fatal(err)
	}
	m := meta{has: metaOwner, uid: 33, mode: unix.S_IFREG | 0o644}
	for range 1500 {
		if err := l.set(7, &m); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if l, err = openLedger(fd); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() > 200 {
		t.Errorf("the ledger has %v bytes, %v", fi.Size(), err)
	}
	if got, err := l.get(7); err != nil || got.uid != 33 {
		t.Errorf("%v, %v", got, err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecodeMeta(f *testing.F) {
	m := meta{has: metaOwner | metaOrigin | metaXattrs, uid: 1, gid: 2, mode: 3, rdev: 4, origin: "/x", xattrs: map[string][]byte{"a": []byte("b")}}
	f.Add(m.encode())
	f.Add([]byte{metaVersion, 0xff, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err != nil {
			return
		}
		again, err := decodeMeta(m.encode())
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%v decodes to %v, %v", m, again, err)
		}
	})
}

func FuzzOpenLedger(f *testing.F) {
	m := meta{has: metaOwner, uid: 1}
	f.Add(ledgerRecord(ledgerRecord(nil, ledgerFile, 1, m.encode()), ledgerLink, 2, []byte("/x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		fd, path := workDir(t)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := openLedger(fd)
		if err != nil {
			return
		}
		if err := l.close(); err != nil {
			t.Fatal(err)
		}
	})
}
