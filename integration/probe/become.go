package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// become turns into another user for good, as services do, checks that there is no
// way back, and runs a command as that user: UID GID COMMAND [ARG...].
func become(args []string) error {
	if len(args) < 3 {
		return errors.New("want UID GID COMMAND")
	}
	uid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if err := syscall.Setgroups([]int{gid, gid + 1}); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	if got := []int{os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid()}; got[0] != uid || got[1] != uid || got[2] != gid || got[3] != gid {
		return fmt.Errorf("uid, euid, gid, egid are %v", got)
	}
	groups, err := os.Getgroups()
	if err != nil || len(groups) != 2 || groups[0] != gid || groups[1] != gid+1 {
		return fmt.Errorf("groups are %v, %v", groups, err)
	}
	for name, back := range map[string]func() error{
		"setuid":    func() error { return syscall.Setuid(0) },
		"setreuid":  func() error { return syscall.Setreuid(-1, 0) },
		"setgid":    func() error { return syscall.Setgid(0) },
		"setgroups": func() error { return syscall.Setgroups([]int{0}) },
	} {
		if err := back(); !errors.Is(err, syscall.EPERM) {
			return fmt.Errorf("%s back to root: %v, want EPERM", name, err)
		}
	}
	cmd := exec.Command(args[2], args[3:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
