package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

type stat struct {
	ppid int
	cpu  float64 // seconds, user and system, of all threads
}

// procStat reads dir/stat, proc(5).
func procStat(dir string) (stat, error) {
	data, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return stat{}, err
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 13 {
		return stat{}, errors.New(dir + "/stat: too short")
	}
	ppid, err1 := strconv.Atoi(f[1])
	utime, err2 := strconv.ParseFloat(f[11], 64)
	stime, err3 := strconv.ParseFloat(f[12], 64)
	const ticks = 100 // USER_HZ, on every architecture that Go knows
	return stat{ppid, (utime + stime) / ticks}, errors.Join(err1, err2, err3)
}

// memory is the resident set of a process in MB.
type memory struct{ Now, Highest float64 }

func memoryOf(pid int) (memory, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	var m memory
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, err := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			m.Now = kb / 1024
		case "VmHWM:":
			m.Highest = kb / 1024
		default:
			continue
		}
		if err != nil {
			return m, err
		}
	}
	return m, nil
}

// holdings are what a process might lose track of.
type holdings struct {
	descriptors, threads int
	memory               float64 // resident, MB
}

func (h holdings) String() string {
	return fmt.Sprintf("%d descriptors, %d threads and %.1f MB", h.descriptors, h.threads, h.memory)
}

func holdingsOf(pid int) (h holdings, err error) {
	for dir, n := range map[string]*int{"fd": &h.descriptors, "task": &h.threads} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, dir))
		if err != nil {
			return h, err
		}
		*n = len(entries)
	}
	now, err := memoryOf(pid)
	h.memory = now.Now
	return h, err
}

// servers are what the loads talk to.
type servers struct {
	iperf int // pid of the one outside
	cmds  []*exec.Cmd
}

func (e *env) startServers(ctx context.Context) (*servers, error) {
	s := &servers{}
	for i, args := range [][]string{
		{"iperf3", "-s", "-p", strconv.Itoa(iperfPort)},
		{e.self, loadStage, "echo", fmt.Sprintf(":%d", echoPort)},
		{e.self, loadStage, "http", fmt.Sprintf(":%d", httpPort)},
		{e.self, loadStage, "dns", ":53"},
	} {
		cmd, err := s.start(e.asUser(ctx, args...))
		if err != nil {
			return nil, err
		}
		if i == 0 {
			s.iperf = cmd.Process.Pid
		}
	}
	for _, port := range []int{iperfPort, echoPort, httpPort} {
		if err := eventually(fmt.Sprintf("a server on port %d", port), func() error {
			c, err := net.Dial("tcp", addr("127.0.0.1", port))
			if err != nil {
				return err
			}
			return c.Close()
		}); err != nil {
			return nil, errors.Join(err, s.stop())
		}
	}
	return s, nil
}

func (s *servers) startInside(ctx context.Context, e *env, n *network) error {
	for _, args := range [][]string{
		{"iperf3", "-s", "-p", strconv.Itoa(iperfPort + 1)},
		{e.self, loadStage, "echo", fmt.Sprintf(":%d", echoPort+1)},
		{e.self, loadStage, "http", fmt.Sprintf(":%d", httpPort+1)},
	} {
		if _, err := s.start(e.inside(ctx, n, args...)); err != nil {
			return err
		}
	}
	time.Sleep(200 * time.Millisecond) // a probe would itself go through what is to be measured
	return nil
}

func (s *servers) start(cmd *exec.Cmd) (*exec.Cmd, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.cmds = append(s.cmds, cmd)
	return cmd, nil
}

func (s *servers) stop() error {
	var errs []error
	for _, cmd := range s.cmds {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		_ = cmd.Wait() // killed
	}
	return errors.Join(errs...)
}
