package image

import (
	"errors"
	"fmt"
)

// Errors that callers branch on.
var (
	// ErrNotFound says that the store (or the source) has no such image.
	ErrNotFound = errors.New("no such image")
	// ErrAmbiguous says that a short id stands for more than one image.
	ErrAmbiguous = errors.New("ambiguous image id")
	// ErrReadOnly says that the store may not be changed by this user.
	ErrReadOnly = errors.New("image store is read-only")
	// ErrInUse says that a container or another process uses the image.
	ErrInUse = errors.New("image is in use")
	// ErrIncomplete says that the store has lost something of the image: pulling it again brings it back.
	ErrIncomplete = errors.New("image is not whole")
	// ErrDigest says that content is not what its digest says.
	ErrDigest = errors.New("digest mismatch")
	// ErrUnsupported says that the content is well-formed but of a kind that cannot be run or read here.
	ErrUnsupported = errors.New("unsupported")
)

// hintError carries a cure for the person who reads the error.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// Hint returns one line that says how to cure the error.
func (e *hintError) Hint() string { return e.hint }

func withHint(err error, format string, args ...any) error {
	return &hintError{err: err, hint: fmt.Sprintf(format, args...)}
}
