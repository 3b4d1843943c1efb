package spec

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// env builds the environment: defaults, the image's, the caller's that are passed on,
// --env-file, -e; the later wins.
func (b *builder) env() error {
	var e environment
	e.set("PATH", defaultPath)
	e.set("HOSTNAME", b.ownHostname())
	if b.c.TTY {
		e.set("TERM", "xterm")
	}
	e.set("container", "urun")
	for _, kv := range b.facts.Image.Env {
		k, v, _ := strings.Cut(kv, "=")
		e.set(k, v)
	}
	if b.opt.Home {
		e.set("HOME", b.facts.HomeDir)
	}
	if err := b.passEnv(&e); err != nil {
		return err
	}
	for _, kv := range b.cdiEnv {
		k, v, _ := strings.Cut(kv, "=")
		e.set(k, v)
	}
	for _, name := range b.opt.EnvFiles {
		if err := b.envFile(&e, name); err != nil {
			return err
		}
	}
	for _, kv := range b.opt.Env {
		k, v, ok := strings.Cut(kv, "=")
		if k == "" || strings.ContainsRune(kv, 0) {
			return fmt.Errorf("-e: invalid environment variable: %q", kv)
		}
		b.apply(&e, envLine{k, v, ok})
	}
	if _, ok := e.index("HOME"); !ok {
		e.set("HOME", b.home())
	}
	b.proc.Env = e
	return nil
}

func (b *builder) envFile(e *environment, name string) error {
	data, err := b.facts.Host.ReadFile(name)
	if err != nil {
		return fmt.Errorf("--env-file: %w", err)
	}
	lines, err := parseEnvFile(data)
	if err != nil {
		return fmt.Errorf("--env-file %s: %w", name, err)
	}
	for _, l := range lines {
		b.apply(e, l)
	}
	return nil
}

// ExecEnv gives the variables that --env-file and -e ask for. One without = is to
// be taken away.
func ExecEnv(files, vars []string, host Host) ([]string, error) {
	b := &builder{facts: Facts{Host: host}}
	var e environment
	for _, name := range files {
		if err := b.envFile(&e, name); err != nil {
			return nil, err
		}
	}
	for _, kv := range vars {
		k, v, ok := strings.Cut(kv, "=")
		if k == "" || strings.ContainsRune(kv, 0) {
			return nil, fmt.Errorf("-e: invalid environment variable: %q", kv)
		}
		if !ok {
			if _, set := host.LookupEnv(k); !set {
				e.unset(k)
				e = append(e, k)
				continue
			}
		}
		b.apply(&e, envLine{k, v, ok})
	}
	return e, nil
}

// apply sets a variable. A name alone takes the caller's value; if he has
// none, the variable is unset, even where the image sets it.
func (b *builder) apply(e *environment, l envLine) {
	if !l.hasValue {
		v, ok := b.facts.Host.LookupEnv(l.key)
		if !ok {
			e.unset(l.key)
			return
		}
		l.value = v
	}
	e.set(l.key, l.value)
}

// environment is a list of KEY=VALUE that keeps its order.
type environment []string

func (e environment) index(key string) (int, bool) {
	for i, kv := range e {
		if k, _, _ := strings.Cut(kv, "="); k == key {
			return i, true
		}
	}
	return 0, false
}

func (e *environment) set(key, value string) {
	if i, ok := e.index(key); ok {
		(*e)[i] = key + "=" + value
		return
	}
	*e = append(*e, key+"="+value)
}

func (e *environment) unset(key string) {
	if i, ok := e.index(key); ok {
		*e = append((*e)[:i], (*e)[i+1:]...)
	}
}

type envLine struct {
	key, value string
	hasValue   bool
}

// parseEnvFile reads docker's format: KEY=VALUE or KEY a line, # comments,
// everything behind = is the value as it stands, without quoting.
func parseEnvFile(data []byte) ([]envLine, error) {
	var out []envLine
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for n, raw := range bytes.Split(data, []byte("\n")) {
		if !utf8.Valid(raw) {
			return nil, fmt.Errorf("line %d: invalid utf8 bytes", n+1)
		}
		line := strings.TrimLeft(strings.TrimSuffix(string(raw), "\r"), " \t\v\f")
		if line == "" || line[0] == '#' {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		switch {
		case strings.ContainsRune(line, 0):
			return nil, fmt.Errorf("line %d: contains a NUL byte", n+1)
		case k == "":
			return nil, fmt.Errorf("line %d: no variable name on line '%s'", n+1, line)
		case strings.ContainsAny(k, " \t\v\f"):
			return nil, fmt.Errorf("line %d: variable '%s' contains whitespaces", n+1, k)
		}
		out = append(out, envLine{k, v, ok})
	}
	return out, nil
}
