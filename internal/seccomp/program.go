package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/program"
)

// Program is a classic BPF program for seccomp(2). In JSON it is a string: the
// instructions as the kernel reads them, 8 bytes each, little-endian, in base64.
type Program []unix.SockFilter

const instructionSize = 8

// MarshalBinary returns 8 bytes an instruction.
func (p Program) MarshalBinary() ([]byte, error) {
	out := make([]byte, 0, len(p)*instructionSize)
	for _, f := range p {
		out = binary.LittleEndian.AppendUint16(out, f.Code)
		out = append(out, f.Jt, f.Jf)
		out = binary.LittleEndian.AppendUint32(out, f.K)
	}
	return out, nil
}

// UnmarshalBinary is the inverse of MarshalBinary.
func (p *Program) UnmarshalBinary(b []byte) error {
	if len(b)%instructionSize != 0 || len(b) > maxInstructions*instructionSize {
		return fmt.Errorf("decode seccomp program: %d bytes are not a program", len(b))
	}
	out := make(Program, 0, len(b)/instructionSize)
	for ; len(b) > 0; b = b[instructionSize:] {
		out = append(out, unix.SockFilter{
			Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:]),
		})
	}
	*p = out
	return nil
}

// MarshalJSON returns null for no program and a base64 string otherwise.
func (p Program) MarshalJSON() ([]byte, error) {
	if p == nil {
		return []byte("null"), nil
	}
	b, err := p.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return json.Marshal(b)
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (p *Program) UnmarshalJSON(b []byte) error {
	var raw []byte
	if err := json.Unmarshal(b, &raw); err != nil {
		return fmt.Errorf("decode seccomp program: %w", err)
	}
	if raw == nil {
		*p = nil
		return nil
	}
	return p.UnmarshalBinary(raw)
}

// Install puts the program on the calling thread, which the caller has locked
// and will execute the payload from: see AddTo.
func (p Program) Install(flags uint) error {
	var to program.Program
	if err := p.AddTo(&to, flags); err != nil {
		return err
	}
	return to.Run()
}

// AddTo has the calls of to from there on bound to the program. The thread needs CAP_SYS_ADMIN in its
// user namespace or no_new_privs (seccomp(2)); AddTo does not set the latter,
// because the payload keeps it. From here on the thread can do only what the
// profile allows.
func (p Program) AddTo(to *program.Program, flags uint) error {
	if len(p) == 0 || len(p) > maxInstructions {
		return fmt.Errorf("install seccomp program: %d instructions", len(p))
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	to.Do("install seccomp program", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), program.Point(to, &prog)).Explain(explainInstall)
	return nil
}

func explainInstall(errno unix.Errno) error {
	switch errno {
	case unix.ENOSYS:
		return fmt.Errorf("the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): %w", errno)
	case unix.EACCES:
		return fmt.Errorf("neither CAP_SYS_ADMIN nor no_new_privs: %w", errno)
	}
	return errno
}
