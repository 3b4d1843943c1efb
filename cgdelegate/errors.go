package cgdelegate

import (
	"errors"
	"fmt"
)

// ErrUnavailable is what every UnavailableError is.
var ErrUnavailable = errors.New("no delegated cgroup")

// Cause is why no delegated cgroup, or a controller in it, can be had.
type Cause string

// Causes.
const (
	NoCgroup2    Cause = "no cgroup v2"         // v1 only, or nothing mounted
	NoManager    Cause = "no systemd"           // neither systemd nor a writable subtree
	NoBus        Cause = "no bus"               // systemd is there, its user manager is not
	ForeignBus   Cause = "foreign bus"          // the bus sees other process ids than we do
	Timeout      Cause = "no answer in time"    // a bus that never answers
	Refused      Cause = "refused"              // systemd said no
	Exists       Cause = "exists"               // a unit of this name is there
	NoController Cause = "controller missing"   // not given to us
	Occupied     Cause = "subtree holds others" // processes are where controllers must be shared out
)

// UnavailableError says why there is no delegated cgroup and what would give one.
type UnavailableError struct {
	Cause Cause
	// Controller and Unit are for NoController: which one, and the systemd unit that
	// would have to delegate it ("" if that is no matter of systemd).
	Controller, Unit string
	Err              error
	Cure             string
}

func (e *UnavailableError) Error() string { return fmt.Sprintf("get a delegated cgroup: %v", e.Err) }
func (e *UnavailableError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, ErrUnavailable) true.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// Hint returns the cure for display.
func (e *UnavailableError) Hint() string { return e.Cure }
