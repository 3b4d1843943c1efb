package spec

import "fmt"

// hinted is an error that knows its cure.
type hinted struct {
	error
	hint string
}

// Hint is the line that the command prints below the error.
func (e *hinted) Hint() string { return e.hint }

func (e *hinted) Unwrap() error { return e.error }

func hint(hint, format string, args ...any) error {
	return &hinted{fmt.Errorf(format, args...), hint}
}

// conflict is docker's wording for options that exclude each other.
func conflict(what string) error { return fmt.Errorf("conflicting options: %s", what) }
