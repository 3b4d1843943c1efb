package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/userns"
)

// Place is a rank's in a container: its monitor counts this process from here on.
type Place struct {
	monitor.RankTicket
	init, user *os.File
}

// Join takes a place in the running container in dir. The error wraps handoff.ErrNobody if that is ending.
func Join(dir string) (*Place, error) {
	conn, err := monitor.Dial(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", handoff.ErrNobody, err)
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	self := os.NewFile(uintptr(fd), "pidfd")
	defer self.Close()
	if err := conn.Send(monitor.KindRank, monitor.Rank{Job: JobShell()}, self); err != nil {
		return nil, fmt.Errorf("%w: %w", handoff.ErrNobody, err)
	}
	m, err := conn.Recv()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", handoff.ErrNobody, err)
	}
	if err != nil {
		return nil, err
	}
	if m.Kind != monitor.KindTicket || len(m.Files) != 2 {
		e := &Error{}
		return nil, fmt.Errorf("%w: %w", handoff.ErrNobody, errors.Join(m.Decode(&e.Failed), e))
	}
	p := &Place{init: m.Files[0], user: m.Files[1]}
	return p, m.Decode(&p.RankTicket)
}

// Become replaces this process by a rank's command. Preserve are the numbers of open files that it keeps. It returns
// only on failure.
func (p *Place) Become(process *specs.Process, keepGroups bool, preserve []uint) error {
	raw, err := json.Marshal(stage.RankRequest{
		Config: p.Config, Namespaces: p.Namespaces, Process: process, KeepGroups: keepGroups, Preserve: preserve,
	})
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	// Without MFD_CLOEXEC: it is for the one that comes.
	request, err := unix.MemfdCreate("urun-rank", 0)
	if err != nil {
		return fmt.Errorf("join: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(request), "request")
	if _, err := f.Write(raw); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	init, err := unix.FcntlInt(p.init.Fd(), unix.F_DUPFD, 3)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	for _, fd := range preserve {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("join: file %d: %w", fd, err)
		}
	}
	return userns.Become("/proc/self/exe", p.user, strconv.Itoa(request), strconv.Itoa(init))
}
