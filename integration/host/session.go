package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/urun-dev/urun/integration/host/wire"
)

// run runs a command in the host with our standard files and signals, and returns its exit status. A limit of 0 is none.
func (m *machine) run(cmd wire.Command, limit time.Duration) (status int, err error) {
	if cmd.TTY {
		cmd.Window = window()
		old, err := term.MakeRaw(int(os.Stdin.Fd()))
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, term.Restore(int(os.Stdin.Fd()), old)) }()
	}
	if err := m.conn.SendValue(wire.Start, cmd); err != nil {
		return 0, err
	}
	go m.input()
	defer m.signals()()
	var timeout <-chan time.Time
	if limit > 0 {
		timeout = time.After(limit)
	}
	type end struct {
		status int
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		status, err := m.output()
		ended <- end{status, err}
	}()
	select {
	case e := <-ended:
		return e.status, e.err
	case <-m.ended:
		return 0, errors.New("the virtual machine ended")
	case <-timeout:
		return 0, fmt.Errorf("no end after %v", limit)
	}
}

// input sends what there is on standard input. It ends with the process, or with the input.
func (m *machine) input() {
	// Errors end the input; the command's end is heard of elsewhere.
	_, _ = io.Copy(m.conn.Writer(wire.Stdin), os.Stdin)
	_ = m.conn.Send(wire.EOF, nil)
}

// signals passes signals on until the returned function is called.
func (m *machine) signals() (stop func()) {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	go func() {
		for s := range c {
			// A host that is gone needs no signal.
			if s == syscall.SIGWINCH {
				_ = m.conn.SendValue(wire.Size, window())
			} else {
				_ = m.conn.SendValue(wire.Signal, int(s.(syscall.Signal)))
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(c)
	}
}

func window() wire.Window {
	cols, rows, err := term.GetSize(int(os.Stdin.Fd()))
	if err != nil {
		return wire.Window{}
	}
	return wire.Window{Rows: uint16(rows), Cols: uint16(cols)}
}

// output copies the command's output until its end.
func (m *machine) output() (int, error) {
	for {
		kind, data, err := m.conn.Recv()
		if err != nil {
			return 0, err
		}
		switch kind {
		case wire.Stdout:
			_, err = os.Stdout.Write(data)
		case wire.Stderr:
			_, err = os.Stderr.Write(data)
		case wire.Exit:
			var st wire.Status
			if err := json.Unmarshal(data, &st); err != nil {
				return 0, err
			}
			if st.Error != "" {
				fmt.Fprintln(os.Stderr, "host:", st.Error)
			}
			return st.Code, nil
		}
		if err != nil {
			return 0, err // who reads our output is gone
		}
	}
}
