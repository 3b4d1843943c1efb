package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestResultsOfSeveralRunsMakeOneTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.json")
	run := func(version string, times map[string][]float64) *results {
		r := &results{
			Seconds: map[string]map[string]*measured{}, Kernel: "6.18", CPUs: 2, Nodes: 7, Tools: []string{version},
			Server: map[string]memory{}, Runs: []aRun{{Load: [2]string{"0.1", "0.2"}, Took: time.Minute}},
		}
		for way, all := range times {
			for _, s := range all {
				r.add("find find", way, s)
			}
		}
		r.finish(version)
		return r
	}
	if _, err := keepResults(file, run("urun version 1", map[string][]float64{kernel: {1}, union: {3}})); err != nil {
		t.Fatal(err)
	}
	// The machine is half as fast now; the union's ratio stays.
	all, err := keepResults(file, run("urun version 2", map[string][]float64{kernel: {2}, overlay: {8}}))
	if err != nil {
		t.Fatal(err)
	}
	text := render(all)
	for _, want := range []string{"| find, fresh | 2.000 | 8.000 (4.00 **> 3.0**) | 3.000 (3.00 ≤ 3.0) |", "2 run(s) of together 2m0s", "Measured with urun version 1: find, fresh (`fuse`)."} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	other := run("urun version 2", nil)
	other.Nodes++
	if _, err := keepResults(file, other); err == nil {
		t.Error("results of another image were added")
	}
}
