package handoff

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// The stages. A name starts with two underscores, which no command does.
const (
	Holder  = "__holder"
	Infra   = "__infra"
	Monitor = "__monitor"
	Union   = "__union"
	Network = "__network"
	Init    = "__init"
	Payload = "__payload"
	Clean   = "__clean"
	Mount   = "__mount"
	Files   = "__files"
	Doctor  = "__doctor"
	Rank    = "__rank" // userns.Become
)

// connFD is where a stage finds its channel.
const connFD = 3

// IsStage tells whether the argument list is one of a stage.
func IsStage(args []string) bool {
	return len(args) > 1 && strings.HasPrefix(args[1], "__")
}

// Command prepares the execution of a stage of the binary at path. It returns
// our end of the stage's channel. The caller starts the command and then calls
// Donated to close the stage's end here.
func Command(path, stage string) (*exec.Cmd, *Conn, error) {
	ours, theirs, err := Pair()
	if err != nil {
		return nil, nil, err
	}
	cmd := &exec.Cmd{
		Path: path,
		// argv[0] is what test programs that stand in for urun dispatch on.
		Args:       []string{"urun", stage},
		Env:        []string{},
		ExtraFiles: []*os.File{theirs},
	}
	return cmd, ours, nil
}

// Donated closes, in the parent, the files that a started stage has got.
func Donated(cmd *exec.Cmd) {
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	cmd.ExtraFiles = nil
}

// Parent returns a stage's channel to the process that started it.
func Parent() (*Conn, error) {
	fd := connFD
	if len(os.Args) > 2 { // see Execute
		var err error
		if fd, err = strconv.Atoi(os.Args[2]); err != nil || fd < connFD {
			return nil, fmt.Errorf("not started by urun: channel %q", os.Args[2])
		}
	}
	c, err := FromFile(os.NewFile(uintptr(fd), "parent"))
	if err != nil {
		return nil, fmt.Errorf("not started by urun: %w", err)
	}
	return c, nil
}
