package main

import (
	"testing"
	"time"
)

func TestMoments(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"10m":                       now.Add(-10 * time.Minute),
		"0s":                        now,
		"1700000000":                time.Unix(1700000000, 0),
		"1700000000.25":             time.Unix(1700000000, 250000000),
		"2026-01-02T03:04:05Z":      time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02T03:04:05+01:00": time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC),
		"2026-01-02T03:04":          time.Date(2026, 1, 2, 3, 4, 0, 0, time.Local),
		"2026-01-02":                time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		if got, err := parseMoment(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "yesterday", "x.5", "2026-13-01"} {
		if got, err := parseMoment(s, now); err == nil {
			t.Errorf("%q was taken for %v", s, got)
		}
	}
}

func TestFiltersOfOneKeyAreAlternativesButLabelsAreNot(t *testing.T) {
	type thing struct {
		word   string
		labels map[string]string
	}
	keys := filterKeys[thing]{
		"word":   wordFilter([]string{"a", "b"}, func(v thing) string { return v.word }),
		"label":  labelFilter(func(v thing) map[string]string { return v.labels }),
		"label!": noLabelFilter(func(v thing) map[string]string { return v.labels }),
	}
	v := thing{"a", map[string]string{"x": "1", "y": "2"}}
	for _, c := range []struct {
		args []string
		want bool
	}{
		{nil, true},
		{[]string{"word=a"}, true},
		{[]string{"word=b"}, false},
		{[]string{"word=b", "word=a"}, true},
		{[]string{"label=x"}, true},
		{[]string{"label=x=1", "label=y=2"}, true},
		{[]string{"label=x=1", "label=y=3"}, false},
		{[]string{"label!=z", "word=a"}, true},
		{[]string{"label!=x"}, false},
		{[]string{"label!=x=2"}, true},
	} {
		f, err := parseFilters(c.args, keys)
		if err != nil {
			t.Errorf("%v: %v", c.args, err)
		} else if got := f.match(v); got != c.want {
			t.Errorf("%v: %v", c.args, got)
		}
	}
	for _, bad := range []string{"word=c", "word", "nosuch=x", ""} {
		if _, err := parseFilters([]string{bad}, keys); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
