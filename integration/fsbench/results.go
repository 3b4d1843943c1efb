package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
)

// finish puts the kernel's times beside those that they were measured with.
func (r *results) finish(urun string) {
	for _, ways := range r.Seconds {
		for _, m := range ways {
			m.Urun = urun
			if k := ways[kernel]; k != nil {
				m.Kernel = k.Times
			}
		}
	}
}

// keepResults adds results to those in a file, in which they take the place of the same, and returns all.
func keepResults(name string, add *results) (*results, error) {
	all := &results{}
	raw, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(raw, all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("results: %w", err)
	}
	if all.Seconds != nil && (all.Kernel != add.Kernel || all.CPUs != add.CPUs || all.Nodes != add.Nodes) {
		return nil, fmt.Errorf("results: those in %s are of another machine, kernel or image: remove it", name)
	}
	all.merge(add)
	if raw, err = json.MarshalIndent(all, "", "\t"); err != nil {
		return nil, err
	}
	return all, os.WriteFile(name, raw, 0o644)
}

func (r *results) merge(add *results) {
	if r.Seconds == nil {
		*r = *add
		return
	}
	r.Runs, r.Tools = append(r.Runs, add.Runs...), add.Tools
	maps.Copy(r.Server, add.Server)
	for what, ways := range add.Seconds {
		if r.Seconds[what] == nil {
			r.Seconds[what] = ways
			continue
		}
		maps.Copy(r.Seconds[what], ways)
	}
}
