package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// filterKeys are the keys that a command's --filter knows: each makes a condition
// of the value behind the =.
type filterKeys[T any] map[string]func(value string) (func(T) bool, error)

// filters are docker's --filter: every key must match, by any of its values;
// but of labels all must.
type filters[T any] map[string][]func(T) bool

func parseFilters[T any](args []string, keys filterKeys[T]) (filters[T], error) {
	f := filters[T]{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		makes, known := keys[key]
		if !ok || !known {
			return nil, &hintError{
				fmt.Errorf("--filter %s: unknown filter", arg),
				"want KEY=VALUE with one of the keys " + strings.Join(slices.Sorted(maps.Keys(keys)), ", "),
			}
		}
		cond, err := makes(value)
		if err != nil {
			return nil, fmt.Errorf("--filter %s: %w", arg, err)
		}
		f[key] = append(f[key], cond)
	}
	return f, nil
}

// has tells whether any of the keys was given.
func (f filters[T]) has(keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { return len(f[k]) > 0 })
}

func (f filters[T]) match(v T) bool {
	for key, conds := range f {
		holds := func(c func(T) bool) bool { return c(v) }
		if strings.HasPrefix(key, "label") {
			if slices.ContainsFunc(conds, func(c func(T) bool) bool { return !c(v) }) {
				return false
			}
		} else if !slices.ContainsFunc(conds, holds) {
			return false
		}
	}
	return true
}

// labelFilter is label=KEY[=VALUE] for things that have labels.
func labelFilter[T any](labels func(T) map[string]string) func(string) (func(T) bool, error) {
	return func(value string) (func(T) bool, error) {
		key, want, valued := strings.Cut(value, "=")
		return func(v T) bool {
			got, ok := labels(v)[key]
			return ok && (!valued || got == want)
		}, nil
	}
}

// noLabelFilter is label!=KEY[=VALUE].
func noLabelFilter[T any](labels func(T) map[string]string) func(string) (func(T) bool, error) {
	return func(value string) (func(T) bool, error) {
		cond, err := labelFilter(labels)(value)
		return func(v T) bool { return !cond(v) }, err
	}
}

// untilFilter is until=TIME: what was made before.
func untilFilter[T any](created func(T) time.Time) func(string) (func(T) bool, error) {
	return func(value string) (func(T) bool, error) {
		t, err := parseMoment(value, time.Now())
		return func(v T) bool { return created(v).Before(t) }, err
	}
}

// boolFilter is KEY=true|false.
func boolFilter[T any](is func(T) bool) func(string) (func(T) bool, error) {
	return func(value string) (func(T) bool, error) {
		want, err := strconv.ParseBool(value)
		if err != nil {
			return nil, fmt.Errorf("want true or false, not %q", value)
		}
		return func(v T) bool { return is(v) == want }, nil
	}
}

// wordFilter is KEY=WORD with one of the words.
func wordFilter[T any](words []string, get func(T) string) func(string) (func(T) bool, error) {
	return func(value string) (func(T) bool, error) {
		if !slices.Contains(words, value) {
			return nil, fmt.Errorf("want %s", strings.Join(words, ", "))
		}
		return func(v T) bool { return get(v) == value }, nil
	}
}

// momentForms are the forms in which docker takes a time, in the local time zone
// where they name none.
var momentForms = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"}

// parseMoment reads a time: seconds since 1970, one of the forms of RFC 3339, or
// how long before now.
func parseMoment(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && s != "0" {
		return now.Add(-d), nil
	}
	if sec, frac, _ := strings.Cut(s, "."); sec != "" {
		if n, err := strconv.ParseInt(sec, 10, 64); err == nil {
			nanos, err := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
			if err == nil {
				return time.Unix(n, nanos), nil
			}
		}
	}
	for _, form := range momentForms {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, &hintError{
		fmt.Errorf("%q is not a time", s),
		"want a time such as 2026-01-31T13:05:00, seconds since 1970, or how long ago, such as 90m",
	}
}
