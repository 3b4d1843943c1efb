// Without the next line the runtime would keep a descriptor of its own, on cpu.max, where there is one to look at.
//
//go:debug containermaxprocs=0

// Probe is the static program that tests run inside containers: it looks at the world it is in, or attacks it.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

var commands = map[string]func(args []string) error{
	"become":        become,       // UID GID COMMAND...: turn into another user, and run it
	"list":          list,         // DIR...: every attribute of every file
	"fds":           fds,          // the descriptors this process was given
	"gen":           gen,          // BYTES: that many bytes of a fixed sequence
	"sha256":        hash,         // the digest of stdin
	"connect":       connect,      // ADDRESS TEXT: send it, print the answer
	"echo":          echo,         // ADDRESS: serve one connection, then end
	"send":          send,         // NETWORK ADDRESS BYTES: send so many, and end
	"mirror":        mirror,       // ADDRESS: connect, and send back all that comes
	"datagram":      datagram,     // ADDRESS TEXT: the same by UDP
	"get":           get,          // URL: the body
	"resolve":       resolve,      // NAME
	"try":           try,          // NAME...: the errno of each system call
	"sysv":          sysv,         // KEY: make a SysV segment; list them
	"mqueue":        mqueue,       // NAME create|open: a POSIX message queue
	"overwrite":     overwrite,    // SECONDS: write to the executable of every process seen
	"kernel-file":   kernelFile,   // PATH...: try to write to kernel files
	"pmi":           pmi,          // ask the launcher at $PMI_FD
	"rank":          rank,         // RANK SIZE DIR: read the memory of the other ranks
	"hugepages":     hugePages,    // N: write to that many
	"sleep-forever": sleepForever, // until a signal
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: probe COMMAND [ARG...]")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "probe %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func fds([]string) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // the directory's own
		}
		if err != nil {
			return err
		}
		// Go's runtime has an epoll and an eventfd of its own.
		if strings.HasPrefix(target, "anon_inode:[event") {
			continue
		}
		fmt.Println(e.Name(), target)
	}
	return nil
}

// gen writes a sequence in which each 8 bytes are their own offset: lost, doubled or swapped blocks change the digest.
func gen(args []string) error {
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for at := int64(0); at < n; {
		for i := 0; i < len(buf); i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], uint64(at)+uint64(i))
		}
		part := buf[:min(int64(len(buf)), n-at)]
		if _, err := os.Stdout.Write(part); err != nil {
			return err
		}
		at += int64(len(part))
	}
	return nil
}

func hash([]string) error {
	h := sha256.New()
	n, err := io.Copy(h, os.Stdin)
	if err != nil {
		return err
	}
	fmt.Printf("%x %d\n", h.Sum(nil), n)
	return nil
}

func connect(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, args[1]); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Print(answer)
	return nil
}

func send(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	c, err := net.Dial(args[0], args[1])
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(make([]byte, n))
	return err
}

func mirror(args []string) error {
	c, err := net.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.Copy(c, c)
	return err
}

func datagram(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, args[1]); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n", buf[:n])
	return nil
}

func get(args []string) error {
	resp, err := http.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func echo(args []string) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("listening on", l.Addr())
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c, "%s echoed to %s\n", strings.TrimSpace(line), host)
	return err
}

func resolve(args []string) error {
	addrs, err := net.LookupHost(args[0])
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(addrs, " "))
	return nil
}

// overwrite tries for some seconds to write to the executable of every process in sight but its own image's programs,
// through descriptors that outlive the process: the moment it exits, ETXTBSY no longer protects it (CVE-2019-5736).
func overwrite(args []string) error {
	seconds, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return err
	}
	held := map[string]*os.File{}
	seen := map[string]string{}
	fmt.Println("ready")
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); {
		exes, err := filepath.Glob("/proc/[0-9]*/exe")
		if err != nil {
			return err
		}
		for _, exe := range exes {
			if held[exe] != nil {
				continue
			}
			fi, err := os.Stat(exe)
			if err != nil || os.SameFile(fi, self) {
				continue
			}
			target, err := os.Readlink(exe)
			if err != nil || strings.HasPrefix(target, "/usr/bin/") {
				continue
			}
			f, err := openPath(exe)
			if err != nil {
				seen[target] = err.Error()
				continue
			}
			held[exe] = f
			seen[target] = "held"
		}
		for exe, f := range held {
			w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				seen[exe] = err.Error()
				continue
			}
			_, err = w.WriteString("#!/bin/sh\necho overwritten\n")
			if err == nil {
				fmt.Println("OVERWROTE", exe)
			}
			if err := errors.Join(err, w.Close()); err != nil {
				seen[exe] = err.Error()
			}
		}
	}
	names := make([]string, 0, len(seen))
	for name, what := range seen {
		names = append(names, name+": "+what)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Println("tried", n)
	}
	return nil
}

// kernelFile opens each file for writing and says how that went; it writes nothing to those that it may open.
func kernelFile(args []string) error {
	for _, name := range args {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			fmt.Println(name, errors.Unwrap(err))
			continue
		}
		fmt.Println(name, "WRITABLE")
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func sleepForever([]string) error {
	fmt.Println("sleeping")
	for { // not select{}: Go's runtime would call that a deadlock
		time.Sleep(time.Hour)
	}
}
