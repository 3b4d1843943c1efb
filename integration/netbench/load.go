package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// The program's own loads and servers, each a process of its own.
const loadStage = "__load"

func load(what string, args []string) error {
	switch what {
	case "pause":
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGTERM)
		<-ch
		return nil
	case "echo":
		return echoServer(args[0])
	case "http":
		return httpServer(args[0])
	case "dns":
		return dnsServer(args[0])
	case "rtt", "connects", "echoes":
		span, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		if what == "rtt" {
			return roundTrips(args[0], span)
		}
		if what == "echoes" {
			return repeat(span, func() error { return oneEcho(args[0]) })
		}
		return repeat(span, func() error { return connect(args[0]) })
	case "many":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return many(args[0], n)
	}
	return fmt.Errorf("unknown load %q", what)
}

// echoServer answers each read with the same bytes, and closes when the client does.
func echoServer(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 4096)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func httpServer(addr string) error {
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello\n") // the client's own business
	}))
}

func dnsServer(addr string) error {
	return dns.ListenAndServe(addr, "udp", dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		var m dns.Msg
		m.SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(192, 0, 2, 1)}}
		_ = w.WriteMsg(&m) // dnsperf counts what is lost
	}))
}

// roundTrips prints the median time of one byte there and back, in microseconds.
func roundTrips(addr string, span time.Duration) error {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 1)
	var took []float64
	for start := time.Now(); time.Since(start) < span; {
		t := time.Now()
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
	}
	slices.Sort(took)
	fmt.Println(took[len(took)/2])
	return nil
}

// repeat prints how often in a second one client does something.
func repeat(span time.Duration, once func() error) error {
	start, n := time.Now(), 0
	for ; time.Since(start) < span; n++ {
		if err := once(); err != nil {
			return err
		}
	}
	fmt.Println(float64(n) / time.Since(start).Seconds())
	return nil
}

// connect makes a connection and closes it with a reset, so that no TIME_WAIT of the client uses up its ports.
func connect(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	return errors.Join(c.(*net.TCPConn).SetLinger(0), c.Close())
}

// many makes n connections, 8 at a time, on each of which a byte goes there and back, and prints how many failed, and why the first did.
func many(addr string, n int) error {
	var wg sync.WaitGroup
	var next, failed atomic.Int64
	var first atomic.Pointer[error]
	for range 8 {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				if err := oneEcho(addr); err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	fmt.Println(failed.Load())
	if err := first.Load(); err != nil {
		fmt.Println(*err)
	}
	return nil
}

func oneEcho(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	b := []byte{42}
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	return c.(*net.TCPConn).SetLinger(0)
}
