package slirp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var loopbackAllowed = Config{AllowHostLoopback: true}

// families are the gateway's address and the network of the host's loopback.
var families = []struct{ name, network, gateway string }{
	{"IPv4", "tcp4", "10.0.2.2"},
	{"IPv6", "tcp6", "[fd75:7275:6e00::2]"},
}

func TestTCPOut(t *testing.T) {
	eachDriver(t, loopbackAllowed, testTCPOut)
}

func testTCPOut(t *testing.T, s *space) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			port := hostTCP(t, f.network, echoTCP)
			c, err := s.dial("tcp", fmt.Sprintf("%s:%d", f.gateway, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			roundTrip(t, c, []byte("hello"))
		})
	}
}

func roundTrip(t *testing.T, c net.Conn, msg []byte) {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, msg) {
		t.Fatalf("got %q, want %q", got, msg)
	}
}

func TestRefusedIsECONNREFUSED(t *testing.T) {
	eachDriver(t, loopbackAllowed, testRefusedIsECONNREFUSED)
}

func testRefusedIsECONNREFUSED(t *testing.T, s *space) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			l, err := net.Listen(f.network, ":0")
			if err != nil {
				t.Fatal(err)
			}
			port := l.Addr().(*net.TCPAddr).Port
			l.Close()
			start := time.Now()
			if _, err := s.dial("tcp", fmt.Sprintf("%s:%d", f.gateway, port)); err != unix.ECONNREFUSED {
				t.Errorf("connect: %v, want ECONNREFUSED", err)
			}
			if d := time.Since(start); d > 500*time.Millisecond {
				t.Errorf("took %v", d)
			}
		})
	}
}

// stream is endless reproducible data.
type stream struct{ r *rand.ChaCha8 }

func newStream(seed byte) stream            { return stream{rand.NewChaCha8([32]byte{seed})} }
func (s stream) Read(p []byte) (int, error) { return s.r.Read(p) }

// compare reads n bytes and compares them with the stream.
func compare(r io.Reader, seed byte, n int64) error {
	want := newStream(seed)
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	var at int64
	for at < n {
		m, err := r.Read(a[:min(int64(len(a)), n-at)])
		want.Read(b[:m])
		if !bytes.Equal(a[:m], b[:m]) {
			return fmt.Errorf("bytes differ near %d", at)
		}
		at += int64(m)
		if err != nil && at < n {
			return fmt.Errorf("after %d bytes: %w", at, err)
		}
	}
	if m, err := r.Read(a[:1]); m != 0 || err != io.EOF {
		return fmt.Errorf("after the end: %d bytes, %v", m, err)
	}
	return nil
}

func TestLargeTransferBothWaysAtOnce(t *testing.T) {
	eachDriver(t, loopbackAllowed, testLargeTransferBothWaysAtOnce)
}

func testLargeTransferBothWaysAtOnce(t *testing.T, s *space) {
	const size = 100 << 20
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			fromInside := make(chan error, 1)
			port := hostTCP(t, f.network, func(c *net.TCPConn) {
				defer c.Close()
				var sent sync.WaitGroup
				sent.Go(func() {
					io.Copy(c, io.LimitReader(newStream(1), size))
					c.CloseWrite()
				})
				fromInside <- compare(c, 2, size)
				sent.Wait()
			})
			c, err := s.dial("tcp", fmt.Sprintf("%s:%d", f.gateway, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			go func() {
				io.Copy(c, io.LimitReader(newStream(2), size))
				c.(*net.TCPConn).CloseWrite()
			}()
			if err := compare(c, 1, size); err != nil {
				t.Errorf("host to container: %v", err)
			}
			if err := <-fromInside; err != nil {
				t.Errorf("container to host: %v", err)
			}
		})
	}
}

func TestHalfClose(t *testing.T) {
	eachDriver(t, loopbackAllowed, testHalfClose)
}

func testHalfClose(t *testing.T, s *space) {
	t.Run("the container closes first and then gets the answer", func(t *testing.T) {
		port := hostTCP(t, "tcp4", func(c *net.TCPConn) {
			defer c.Close()
			b, _ := io.ReadAll(c)
			time.Sleep(50 * time.Millisecond)
			fmt.Fprintf(c, "got %d", len(b))
		})
		c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write(make([]byte, 12345))
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "got 12345" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("the host closes first and then gets the rest", func(t *testing.T) {
		got := make(chan string, 1)
		port := hostTCP(t, "tcp4", func(c *net.TCPConn) {
			defer c.Close()
			c.Write([]byte("over"))
			c.CloseWrite()
			b, err := io.ReadAll(c)
			got <- fmt.Sprint(string(b), err)
		})
		c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(c); err != nil || string(b) != "over" {
			t.Errorf("%q, %v", b, err)
		}
		time.Sleep(50 * time.Millisecond)
		c.Write([]byte("rest"))
		c.Close()
		if g := <-got; g != "rest<nil>" {
			t.Errorf("host got %q", g)
		}
	})
}

func TestResetIsPassedOn(t *testing.T) {
	eachDriver(t, loopbackAllowed, testResetIsPassedOn)
}

func testResetIsPassedOn(t *testing.T, s *space) {
	reset := func(c *net.TCPConn) {
		c.SetLinger(0)
		c.Close()
	}
	check := func(t *testing.T, c net.Conn) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("read: %v, want ECONNRESET", err)
		}
	}
	conns := make(chan *net.TCPConn, 1)
	port := hostTCP(t, "tcp4", func(c *net.TCPConn) { conns <- c })
	dial := func(t *testing.T) (in, out *net.TCPConn) {
		t.Helper()
		c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn), <-conns
	}
	t.Run("from the host", func(t *testing.T) {
		in, out := dial(t)
		defer in.Close()
		reset(out)
		check(t, in)
	})
	t.Run("from the container", func(t *testing.T) {
		in, out := dial(t)
		defer out.Close()
		reset(in)
		check(t, out)
	})
	t.Run("from the host after its half was closed", func(t *testing.T) {
		in, out := dial(t)
		defer in.Close()
		out.CloseWrite()
		in.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(in); len(b) != 0 || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		reset(out)
		waitFor(t, "the write inside to fail", func() bool {
			_, err := in.Write([]byte("x"))
			return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
		})
	})
	t.Run("from the container after its half was closed", func(t *testing.T) {
		in, out := dial(t)
		defer out.Close()
		in.CloseWrite()
		out.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(out); len(b) != 0 || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		reset(in)
		waitFor(t, "the write on the host to fail", func() bool {
			_, err := out.Write([]byte("x"))
			return err != nil
		})
	})
}

// patience is for a machine that has much else to do.
const patience = 30 * time.Second

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
