package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/cure"
	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/volume"
	"github.com/urun-dev/urun/userns"
)

// hintError is an error with a known cure.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }
func (e *hintError) Hint() string  { return e.hint }

// hints are the cures of errors that many commands can meet.
var hints = []struct {
	is   error
	hint string
}{
	{state.ErrNotFound, "urun ps -a lists containers"},
	{state.ErrAmbiguous, "give more digits of the id, or the name"},
	{state.ErrNameInUse, "choose another name, or remove that container with urun rm, or take its place with --replace"},
	{state.ErrBusy, "another urun command is at work on it: try again"},
	{errNotRunning, "urun ps -a shows what became of it"},
	{image.ErrAmbiguous, "give more digits of the id"},
	{network.ErrNotFound, "urun network ls lists networks"},
	{network.ErrInUse, "remove those containers first, or take them off it with urun network disconnect"},
	{unix.EROFS, cure.Store(unix.EROFS, "")},
	{unix.ENOSPC, cure.Store(unix.ENOSPC, "")},
	{unix.EDQUOT, cure.Store(unix.EDQUOT, "")},
	{volume.ErrNotFound, "urun volume ls lists volumes"},
	{volume.ErrInUse, "remove those containers first: a volume that a container has is never removed"},
}

// hintOf is what cures an error, or "".
func hintOf(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) && hinted.Hint() == userns.CureLimits {
		return userns.CureOfLimits() // from outside there is more to be seen
	}
	if errors.As(err, &hinted) && hinted.Hint() != "" {
		return hinted.Hint()
	}
	for _, h := range hints {
		if errors.Is(err, h.is) {
			return h.hint
		}
	}
	if errors.Is(err, image.ErrNotFound) {
		return "urun images lists those that are here, urun pull brings others"
	}
	return ""
}

// storeError gives an error of opening the store in dir the cure that doctor knows, unless it has one.
func storeError(err error, dir string) error {
	if hint := cure.Store(err, dir); hint != "" && hintOf(err) == "" {
		return &hintError{err, hint}
	}
	return err
}

// helpful says of an error about a flag, where nothing else cures it, where the flags are explained.
func helpful(err error, command string) error {
	if err == nil || !strings.HasPrefix(err.Error(), "-") || strings.Contains(err.Error(), "\n") || hintOf(err) != "" {
		return err
	}
	return &hintError{err, "see " + command + " --help"}
}

// printError prints an error as one line and a second with its cure. An error
// that is several is as many lines.
func printError(w io.Writer, err error) {
	if many, ok := err.(interface{ Unwrap() []error }); ok && strings.Contains(err.Error(), "\n") {
		for _, e := range many.Unwrap() {
			printError(w, e)
		}
		return
	}
	fmt.Fprintf(w, "urun: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
}

// usageError is a command line that makes no sense, with the nearest that would.
func usageError(err error, parser *kong.Kong) error {
	node, where := parser.Model.Node, "urun"
	var perr *kong.ParseError
	if errors.As(err, &perr) && perr.Context != nil {
		for _, p := range perr.Context.Path {
			if p.Command != nil {
				node, where = p.Command, where+" "+p.Command.Name
			}
		}
	}
	see := "see " + where + " --help"
	text := err.Error()
	text, _, _ = strings.Cut(text, ", did you mean")
	switch {
	case strings.HasPrefix(text, "unexpected argument ") && len(node.Children) > 0:
		word := strings.TrimPrefix(text, "unexpected argument ")
		return &hintError{fmt.Errorf("unknown command %q for %s", word, where), nearest(word, commandNames(node), see)}
	case strings.HasPrefix(text, "expected one of") && len(node.Children) > 0:
		said := "name a command"
		if group, ok := strings.CutPrefix(where, "urun "); ok {
			said = group + ": " + said
		}
		return &hintError{errors.New(said), "one of " + strings.Join(commandNames(node), ", ") + "; " + see}
	case strings.HasPrefix(text, "unknown flag "):
		flag := strings.TrimPrefix(text, "unknown flag ")
		return &hintError{fmt.Errorf("unknown flag %s for %s", flag, where), nearest(flag, flagNames(node), see)}
	}
	if arg, ok := strings.CutPrefix(text, `expected "<`); ok && !strings.Contains(text, "\", ") {
		arg, _, _ = strings.Cut(arg, ">")
		text = "name a " + arg
		if strings.ContainsAny(arg[:1], "aeiou") {
			text = "name an " + arg
		}
	}
	if where != "urun" {
		text = strings.TrimPrefix(where, "urun ") + ": " + text
	}
	return &hintError{errors.New(text), see}
}

func commandNames(node *kong.Node) []string {
	var names []string
	for _, c := range node.Children {
		if !c.Hidden {
			names = append(append(names, c.Name), c.Aliases...)
		}
	}
	return names
}

func flagNames(node *kong.Node) []string {
	var names []string
	for _, group := range node.AllFlags(true) {
		for _, f := range group {
			names = append(names, "--"+f.Name)
		}
	}
	return names
}

// nearest suggests the word that was meant: the closest, if it is close.
func nearest(word string, known []string, see string) string {
	best, least := "", max(2, len(word)/3)+1
	for _, k := range known {
		d := distance(word, k)
		if strings.HasPrefix(k, word) && len(word) > 2 {
			d = 1
		}
		if d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return see
	}
	return fmt.Sprintf("did you mean %s? %s", best, see)
}

// distance counts the letters to change, leave out, put in or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
