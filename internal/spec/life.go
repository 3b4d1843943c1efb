package spec

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// LifeOptions are the flags that say how a container is watched, restarted and logged.
type LifeOptions struct {
	Restart string

	HealthCmd                                                             *string
	HealthInterval, HealthTimeout, HealthStartPeriod, HealthStartInterval string
	HealthRetries                                                         *int
	NoHealthcheck                                                         bool

	LogDriver string
	LogOpts   []string
}

// Restart is a restart policy, in docker's words.
type Restart struct {
	Policy string // "no", "on-failure", "always" or "unless-stopped"
	// Retries bounds the restarts of on-failure; 0 is no bound.
	Retries int
}

// Log says what becomes of the output. MaxSize is in bytes, 0 for no limit;
// MaxFiles counts the files that are kept, at least 1.
type Log struct {
	Driver   string // "json-file" or "none"
	MaxSize  int64
	MaxFiles int
	// Labels and Env are the names of those that go with each line, and Details what
	// they are.
	Labels, Env []string          `json:",omitempty"`
	Details     map[string]string `json:",omitempty"`
}

// Health is a check that is run inside every so often.
type Health struct {
	// Test is what docker has in an image's config: CMD and a command line, or
	// CMD-SHELL and a script.
	Test                                          []string
	Interval, Timeout, StartPeriod, StartInterval time.Duration
	Retries                                       int // failures in a row that make it unhealthy
}

// Command is the check's command line.
func (h *Health) Command() []string {
	if h.Test[0] == "CMD-SHELL" {
		return []string{"/bin/sh", "-c", strings.Join(h.Test[1:], " ")}
	}
	return h.Test[1:]
}

// life parses the restart policy, the log and the flags of the health check.
func (b *builder) life() error {
	var err error
	if b.c.Restart, err = ParseRestart(b.opt.Restart); err != nil {
		return err
	}
	if b.opt.Remove && b.c.Restart.Policy != "no" {
		return conflict("--restart and --rm")
	}
	if err := b.log(); err != nil {
		return err
	}
	return b.healthFlags()
}

// ParseRestart parses --restart; empty is no.
func ParseRestart(s string) (Restart, error) {
	name, count, counted := strings.Cut(s, ":")
	r := Restart{Policy: name}
	if s == "" {
		r.Policy = "no"
	}
	if !slices.Contains([]string{"no", "on-failure", "always", "unless-stopped"}, r.Policy) {
		return r, hint("use no, on-failure[:N], always or unless-stopped", "--restart %s: unknown policy", s)
	}
	if !counted {
		return r, nil
	}
	n, err := strconv.Atoi(count)
	if r.Policy != "on-failure" || err != nil || n < 0 {
		return r, hint("a number of tries goes with on-failure alone: on-failure:5", "--restart %s: not a policy", s)
	}
	r.Retries = n
	return r, nil
}

func (b *builder) log() error {
	l := Log{Driver: b.opt.LogDriver, MaxFiles: 1}
	switch l.Driver {
	case "", "k8s-file": // podman's default, for those who come from there
		l.Driver = "json-file"
	case "json-file", "none":
	default:
		return hint("use json-file or none", "--log-driver %s: unknown driver", l.Driver)
	}
	for _, o := range b.opt.LogOpts {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "max-size":
			n, err := units.RAMInBytes(value)
			if err != nil || n <= 0 && value != "-1" {
				return fmt.Errorf("--log-opt %s: not a size such as 10m", o)
			}
			l.MaxSize = max(n, 0)
		case "max-file":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return fmt.Errorf("--log-opt %s: must be a number from 1 on", o)
			}
			l.MaxFiles = n
		case "labels":
			l.Labels = append(l.Labels, strings.Split(value, ",")...)
		case "env":
			l.Env = append(l.Env, strings.Split(value, ",")...)
		default:
			return hint("known are max-size, max-file, labels and env", "--log-opt %s: unknown option", o)
		}
	}
	if l.Driver == "none" && len(b.opt.LogOpts) > 0 {
		return conflict("--log-driver=none and --log-opt")
	}
	if l.MaxFiles > 1 && l.MaxSize == 0 {
		return hint("add --log-opt max-size=SIZE", "--log-opt max-file: files are kept only where their size is limited")
	}
	b.c.Log = l
	return nil
}

// logDetails finds the labels and variables that --log-opt wants beside each line.
func (b *builder) logDetails() error {
	l := &b.c.Log
	details := map[string]string{}
	for _, name := range l.Labels {
		if value, ok := b.c.Labels[name]; ok {
			details[name] = value
		}
	}
	for _, e := range b.proc.Env {
		if name, value, _ := strings.Cut(e, "="); slices.Contains(l.Env, name) {
			details[name] = value
		}
	}
	if len(details) > 0 {
		l.Details = details
	}
	return nil
}

// The defaults of docker.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
)

// healthFlags checks the flags; what they leave open the image may say.
func (b *builder) healthFlags() error {
	o := &b.opt
	given := o.HealthCmd != nil || o.HealthRetries != nil || o.HealthInterval+o.HealthTimeout+o.HealthStartPeriod+o.HealthStartInterval != ""
	if o.NoHealthcheck {
		if given {
			return conflict("--no-healthcheck and other --health flags")
		}
		return nil
	}
	if !given {
		return nil
	}
	h := &Health{}
	for _, d := range []struct {
		flag, value string
		into        *time.Duration
	}{
		{"--health-interval", o.HealthInterval, &h.Interval},
		{"--health-timeout", o.HealthTimeout, &h.Timeout},
		{"--health-start-period", o.HealthStartPeriod, &h.StartPeriod},
		{"--health-start-interval", o.HealthStartInterval, &h.StartInterval},
	} {
		if d.value == "" {
			continue
		}
		var err error
		if *d.into, err = time.ParseDuration(d.value); err != nil || *d.into < 0 || *d.into > 0 && *d.into < time.Millisecond {
			return fmt.Errorf("%s %s: not a time such as 30s, at least 1ms", d.flag, d.value)
		}
	}
	if r := o.HealthRetries; r != nil {
		if *r < 0 {
			return fmt.Errorf("--health-retries %d: can not be negative", *r)
		}
		h.Retries = *r
	}
	if c := o.HealthCmd; c != nil {
		h.Test = []string{"CMD-SHELL", *c}
		if *c == "" || *c == "none" {
			return hint("--no-healthcheck turns the image's check off", "--health-cmd %q: not a command", *c)
		}
	}
	b.c.Health = h
	return nil
}

// health merges the flags with the image's check.
func (b *builder) health() error {
	h := b.facts.ImageHealth
	if b.opt.NoHealthcheck || h == nil {
		h = &Health{}
	}
	if f := b.c.Health; f != nil {
		merged := *h
		h = &merged
		if f.Test != nil {
			h.Test = f.Test
		}
		for _, d := range []struct{ from, into *time.Duration }{
			{&f.Interval, &h.Interval}, {&f.Timeout, &h.Timeout}, {&f.StartPeriod, &h.StartPeriod}, {&f.StartInterval, &h.StartInterval},
		} {
			if *d.from != 0 {
				*d.into = *d.from
			}
		}
		if f.Retries != 0 {
			h.Retries = f.Retries
		}
	}
	if len(h.Test) < 2 || h.Test[0] == "NONE" {
		b.c.Health = nil
		return nil
	}
	out := *h
	for _, d := range []struct {
		into  *time.Duration
		value time.Duration
	}{{&out.Interval, healthInterval}, {&out.Timeout, healthTimeout}, {&out.StartInterval, healthStartInterval}} {
		if *d.into == 0 {
			*d.into = d.value
		}
	}
	if out.Retries == 0 {
		out.Retries = healthRetries
	}
	b.c.Health = &out
	return nil
}

// ParseImageHealth finds the check in an image's config as it was published:
// docker's, which the OCI image format has no field for. Nil: there is none.
func ParseImageHealth(raw []byte) (*Health, error) {
	var img struct {
		Config struct{ Healthcheck *Health }
	}
	if err := json.Unmarshal(raw, &img); err != nil {
		return nil, fmt.Errorf("health check of the image: %w", err)
	}
	h := img.Config.Healthcheck
	if h == nil || len(h.Test) == 0 {
		return nil, nil
	}
	if kind := h.Test[0]; kind != "NONE" && kind != "CMD" && kind != "CMD-SHELL" {
		return nil, fmt.Errorf("health check of the image: unknown kind %q", kind)
	}
	return h, nil
}
