package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// SystemFile is the administrator's configuration file.
const SystemFile = "/etc/urun/config.toml"

// file is what a configuration file may say. A nil pointer is a key that it does not have.
type file struct {
	Bind     []string `toml:"bind"`
	Home     *bool    `toml:"home"`
	HPC      *bool    `toml:"hpc"`
	Env      []string `toml:"env"`
	UserNS   *string  `toml:"userns"`
	Storage  *string  `toml:"storage"`
	Writable *string  `toml:"writable"`
	Network  *string  `toml:"network"`
}

// Value is a setting and the file that it is from; From is "" where no file has it.
type Value[T any] struct {
	Value T
	From  string
}

// Settings are what the files say together.
type Settings struct {
	// Bind are bind mounts, as --bind takes them.
	Bind []Value[string]
	// Env are patterns of variables that containers get from their callers.
	Env []Value[string]
	// Home and HPC are --home and --hpc, the others the flags of their names.
	Home, HPC                          Value[bool]
	UserNS, Storage, Writable, Network Value[string]
}

// Files are the configuration files, the one that goes before others last.
func Files() []string {
	dir := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		home := os.Getenv("HOME")
		if !filepath.IsAbs(home) {
			return []string{SystemFile}
		}
		dir = filepath.Join(home, ".config")
	}
	return []string{SystemFile, filepath.Join(dir, "urun", "config.toml")}
}

// Load reads the files, of which a later one goes before an earlier one.
func Load(files []string) (Settings, error) {
	var s Settings
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return s, fmt.Errorf("configuration: %w", err)
		}
		f, err := parse(name, raw)
		if err != nil {
			return s, err
		}
		s.add(name, f)
	}
	return s, nil
}

func parse(name string, raw []byte) (file, error) {
	var f file
	err := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields().Decode(&f)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown) && len(unknown.Errors) > 0:
		first := unknown.Errors[0]
		row, _ := first.Position()
		return f, &Error{
			fmt.Errorf("%s:%d: unknown key %q", name, row, strings.Join(first.Key(), ".")),
			"the keys are bind, home, hpc, env, userns, storage, writable and network",
		}
	case errors.As(err, &wrong):
		row, _ := wrong.Position()
		return f, fmt.Errorf("%s:%d: %w", name, row, err)
	case err != nil:
		return f, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// Error is a mistake in a file, with what cures it.
type Error struct {
	err  error
	hint string
}

func (e *Error) Error() string { return e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Hint is the cure.
func (e *Error) Hint() string { return e.hint }

func (s *Settings) add(name string, f file) {
	for _, b := range f.Bind {
		s.Bind = append(s.Bind, Value[string]{b, name})
	}
	for _, e := range f.Env {
		s.Env = append(s.Env, Value[string]{e, name})
	}
	set(&s.Home, f.Home, name)
	set(&s.HPC, f.HPC, name)
	set(&s.UserNS, f.UserNS, name)
	set(&s.Storage, f.Storage, name)
	set(&s.Writable, f.Writable, name)
	set(&s.Network, f.Network, name)
}

func set[T any](into *Value[T], v *T, name string) {
	if v != nil {
		*into = Value[T]{*v, name}
	}
}
