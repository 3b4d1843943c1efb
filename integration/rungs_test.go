package integration

import (
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// Each rung below the highest works by itself, and one line says what is not as it would be.
func TestRungs(t *testing.T) {
	for _, c := range []struct{ without, notice, script, says string }{
		{"proc", "the outer pid namespace", "[ $$ != 1 ] && echo shared", "shared"},
		{"sys", "the container shares it", "[ -d /sys/kernel ] && echo there", "there"},
		{"tun", "a veth pair", "[ -e /sys/class/net/tun0-peer ] && echo veth", "veth"},
		{"tun,veth", "shares this machine's network", "[ ! -e /sys/class/net/tun0 ] && echo host", "host"},
		{"pivot", "without pivot_root", "ls -d /demo; ls -d /../demo; cd /proc/1/root && ls -d demo", "/demo\n/../demo\ndemo"},
		{"proc,sys,tun", "outer /proc", "id -u", "0"},
		{"proc,sys,tun,fuse,pivot", "without pivot_root", "id -u", "0"},
	} {
		t.Run(c.without, func(t *testing.T) {
			r := harness.Run(t, "--without", c.without, "--", "sh", "-c", c.script)
			r.Says(c.says)
			if !strings.Contains(r.Stderr, c.notice) {
				t.Errorf("%s\nwant a notice with %q", r, c.notice)
			}
		})
	}
}

func TestRungsAreRefusedWhereSomethingWasAskedFor(t *testing.T) {
	harness.Run(t, "--without", "proc", "--pid", "private", "--", "true").Refused("--pid private", "masked")
	harness.Run(t, "--without", "air", "--", "true").Refused("--without air", "proc, sys, tun, veth, fuse, pivot, userns, mounts")
}

func TestRungsDetached(t *testing.T) {
	id := harness.Urun(t, "run", "-d", "--without", "proc,sys,tun,pivot", harness.DemoImage, "sh", "-c", "echo up; exec sleep 300").OK()
	harness.Eventually(t, 20*time.Second, "the container says up", func() bool {
		return strings.Contains(harness.Urun(t, "logs", id).Stdout, "up")
	})
	harness.Urun(t, "exec", id, "ls", "-d", "/demo").Says("/demo")
	harness.Urun(t, "rm", "-f", id).OK()
	harness.Urun(t, "inspect", id).Exits(1)
}

// A container in the outer pid namespace takes all of its processes with it.
func TestProcessesEndWithAContainerInTheHostsPIDNamespace(t *testing.T) {
	started := time.Now()
	r := harness.Run(t, "--pid", "host", "--", "sh", "-c", "(setsid sleep 3000 &); sleep 3001 & exec echo $$")
	r.OK()
	// The sleepers hold the pipes that the call waits for.
	if took := time.Since(started); took > harness.Timeout/2 {
		t.Errorf("it took %v: what was left in the background was not ended", took)
	}
}
