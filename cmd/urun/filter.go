package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urun-dev/urun/internal/state"
)

// filters are docker's --filter: every key must match, by any of its values.
type filters map[string][]string

// containerFilters are the keys for containers.
var containerFilters = map[string]func(rec *state.Record, value string) bool{
	"id":     func(rec *state.Record, v string) bool { return strings.HasPrefix(rec.ID, v) },
	"name":   func(rec *state.Record, v string) bool { return strings.Contains(rec.Name, v) },
	"status": func(rec *state.Record, v string) bool { return string(rec.Status) == v },
	"ancestor": func(rec *state.Record, v string) bool {
		return rec.Image == v || strings.HasPrefix(rec.ImageID, "sha256:"+v)
	},
	"exited": func(rec *state.Record, v string) bool {
		return rec.Status == state.Exited && strconv.Itoa(rec.ExitCode) == v
	},
	"label": func(rec *state.Record, v string) bool {
		key, want, valued := strings.Cut(v, "=")
		got, ok := rec.Labels[key]
		return ok && (!valued || got == want)
	},
}

func parseFilters(args []string) (filters, error) {
	f := filters{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if _, known := containerFilters[key]; !ok || !known {
			return nil, fmt.Errorf("--filter %s: want id, name, label, status, ancestor or exited, and =VALUE", arg)
		}
		f[key] = append(f[key], value)
	}
	return f, nil
}

func (f filters) has(key string) bool { return len(f[key]) > 0 }

func (f filters) match(rec *state.Record) bool {
	for key, values := range f {
		any := false
		for _, v := range values {
			any = any || containerFilters[key](rec, v)
		}
		if !any {
			return false
		}
	}
	return true
}
