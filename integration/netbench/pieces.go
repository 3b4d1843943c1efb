package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"
)

// results are what was measured, and what the report says of the measuring.
type results struct {
	Versions []string // of urun first
	Kernel   string
	Rounds   int
	Span     time.Duration
	Networks []string
	Got      map[string]map[string][]float64 // figure -> network -> rounds
	Memory   map[string]memory               // network -> of its helper
	Failed   string                          // of the many connections
	Notes    []string
	Load     [2]float64 // before and after
	Took     time.Duration
	Pieces   int
}

// readPieces reads what earlier runs have left; of another program it is worth nothing.
func readPieces(name string) (results, error) {
	var r results
	data, err := os.ReadFile(name)
	if name == "" || errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

// add puts a later piece to r. A figure that both have is the later one's.
func (r *results) add(later results) error {
	if r.Pieces == 0 {
		*r = later
		return nil
	}
	if !slices.Equal(r.Versions, later.Versions) || r.Rounds != later.Rounds || r.Span != later.Span {
		return fmt.Errorf("the earlier pieces are of other programs or rounds: %v, %d of %s", r.Versions, r.Rounds, r.Span)
	}
	for _, n := range later.Networks {
		if !slices.Contains(r.Networks, n) {
			r.Networks = append(r.Networks, n)
		}
	}
	maps.Copy(r.Got, later.Got)
	for n, m := range later.Memory {
		if old, ok := r.Memory[n]; ok {
			m = memory{Now: old.Now, Highest: max(old.Highest, m.Highest)}
		}
		r.Memory[n] = m
	}
	if later.Failed != "" {
		r.Failed = later.Failed
	}
	for _, n := range later.Notes {
		if !slices.Contains(r.Notes, n) {
			r.Notes = append(r.Notes, n)
		}
	}
	// The busiest moment says how far the figures can be trusted.
	for i, l := range later.Load {
		r.Load[i] = max(r.Load[i], l)
	}
	r.Took += later.Took
	r.Pieces += later.Pieces
	return nil
}

func (r *results) write(name string) error {
	if name == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o644)
}
