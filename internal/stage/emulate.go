package stage

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// emulate has the monitor asked from here on about the calls of this thread, and of
// all that it starts, that take more ids than there are. It comes after all that is
// done with the ids that there are, and before the command's own are set, which may be others.
func (s *setup) emulate() error {
	listener, err := s.listen()
	if err != nil || listener == nil {
		return err
	}
	defer listener.Close()
	s.emulated = true
	return s.parent.Send(KindListener, Listener{Union: s.storage == StorageFuse}, listener)
}

// listen returns the descriptor on which a supervisor is asked, or nil where there is to be none.
func (s *setup) listen() (*os.File, error) {
	if len(s.Emulation) == 0 {
		return nil, nil
	}
	listener, err := s.Emulation.Listen()
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("somebody supervises the calls of this process already, as inside another such container: %w", err)
	}
	if err == nil {
		return listener, nil
	}
	if s.EmulationAsked {
		return nil, &hintError{fmt.Errorf("emulate root: %w", err), "leave out --root-emulation=on"}
	}
	s.notices = append(s.notices, fmt.Sprintf("root is not emulated, so packages that have users of their own can not be installed: %v", err))
	return nil, nil
}
