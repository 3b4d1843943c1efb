// Package benchkit is what the programs that measure have in common.
package benchkit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// Rewrite puts text between the markers of a target of the Makefile, such as bench-fs, in a document.
func Rewrite(file, target, text string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := marker(target, "begin"), marker(target, "end")
	before, rest, ok1 := strings.Cut(string(data), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s: %s and %s are not there", file, begin, end)
	}
	// In place: the file may be somebody else's, in a directory of root's.
	return os.WriteFile(file, []byte(before+begin+"\n\n"+strings.Trim(text, "\n")+"\n\n"+end+after), 0o644)
}

func marker(target, which string) string {
	return fmt.Sprintf("<!-- made by `make %s`: %s -->", target, which)
}

// Median is that of v, which stays as it is; of none it is 0.
func Median[T ~int64 | ~float64](v []T) T {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// LoadAverage is that of the last minute.
func LoadAverage() (float64, error) {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(data), " ")
	return strconv.ParseFloat(first, 64)
}

// Command runs a program; an error has what it printed.
func Command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// CopyProgram copies an executable file to where none is.
func CopyProgram(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o755), out.Close())
}
