package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// childLimits provokes, in a namespace of its own, what a strict machine does.
func childLimits() error {
	if err := waitForParent(); err != nil {
		return err
	}
	m := Map{UIDs: one(0, 0), GIDs: one(0, 0)}
	attempt := func(what string, want error) error {
		err := Start(exec.Command("/proc/self/exe", "__nothing"), m, 0)
		if !errors.Is(err, want) || cureOf(err) == "" {
			return fmt.Errorf("%s: got %w, hint %q", what, err, cureOf(err))
		}
		fmt.Printf("%s: %v\n", what, err)
		return nil
	}
	const setting = "/proc/sys/user/max_user_namespaces"
	old, err := os.ReadFile(setting)
	if err != nil {
		return err
	}
	// The setting is one of each user namespace, so the machine's is not touched.
	if err := os.WriteFile(setting, []byte("0"), 0); err != nil {
		return err
	}
	if err := attempt("max_user_namespaces", unix.ENOSPC); err != nil {
		return err
	}
	if err := os.WriteFile(setting, old, 0); err != nil {
		return err
	}
	// A chroot that still has /proc and /dev.
	dir := "/tmp"
	for _, step := range []error{
		unix.Mount("none", dir, "tmpfs", 0, ""), os.MkdirAll(dir+"/new/proc", 0o755), os.Mkdir(dir+"/new/dev", 0o755),
		unix.Mount("/dev", dir+"/new/dev", "", unix.MS_BIND|unix.MS_REC, ""),
		unix.Mount("/proc", dir+"/new/proc", "", unix.MS_BIND|unix.MS_REC, ""), unix.Chroot(dir + "/new"), unix.Chdir("/"),
	} {
		if step != nil {
			return step
		}
	}
	return attempt("chroot", unix.EPERM)
}

func TestLimitsOfTheMachineAreNamed(t *testing.T) {
	needUserNS(t)
	m, err := Plan(Request{Mode: ModeSingle}, Current())
	if err != nil {
		t.Fatal(err)
	}
	cmd := self(t, "__limits")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout = &out
	if err := Start(cmd, m, syscall.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"user.max_user_namespaces is 0", "chroot"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("no word of %q", part)
		}
	}
}

func TestHelpersWithoutPowerAreNamed(t *testing.T) {
	if mayWriteDirectly() {
		t.Skip("missing: an ordinary user (root needs no helpers)")
	}
	dir := t.TempDir()
	plain := filepath.Join(dir, "newuidmap")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	err := HelpersUsable()
	if err == nil || !strings.Contains(err.Error(), "neither setuid root") || !strings.Contains(cureOf(err), "chmod u+s ") {
		t.Errorf("%v / %s", err, cureOf(err))
	}
	t.Setenv("PATH", t.TempDir())
	if err := HelpersUsable(); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(cureOf(err), "uidmap") {
		t.Errorf("%v / %s", err, cureOf(err))
	}
	m, err := Plan(Request{}, Current())
	if err != nil || !m.Single() || m.Note == "" {
		t.Errorf("%s (%s) %v", m, m.Note, err)
	}
}

func TestNoNewPrivsLeavesASingleID(t *testing.T) {
	if mayWriteDirectly() {
		t.Skip("missing: an ordinary user (root needs no helpers)")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("missing: setpriv (package util-linux)")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("setpriv", "--no-new-privs", exe, "__plan").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}

// childPlan runs with no_new_privs.
func childPlan() error {
	id := Current()
	m, err := Plan(Request{}, id)
	if err != nil {
		return err
	}
	if !m.Single() || m.Note == "" {
		return fmt.Errorf("planned %s (%s)", m, m.Note)
	}
	fmt.Println(m.Note)
	cmd := exec.Command("/proc/self/exe", "__nothing")
	if err := Start(cmd, m, 0); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return err
	}
	// Asked for more all the same, the failure names its cause.
	rs := []Range{{0, uint32(id.UID), 1}, {1, 100000, 5}}
	err = Start(exec.Command("/proc/self/exe", "__nothing"), Map{UIDs: rs, GIDs: rs}, 0)
	if err == nil || !strings.Contains(err.Error(), "no_new_privs") || cureOf(err) == "" {
		return fmt.Errorf("start with more ids: %w", err)
	}
	return nil
}
