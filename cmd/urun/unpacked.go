package main

import (
	"errors"
	"path/filepath"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/unpacked"
)

// collectUnpacked removes the unpacked images whose merged tree goes, and returns
// how many bytes they took. It leaves those of another store, which containers are made of.
func (a *App) collectUnpacked(trees map[string]bool) (freed int64, err error) {
	all, err := unpacked.List(a.stateRoot())
	if err != nil {
		return 0, err
	}
	used, err := a.treesInUse()
	if err != nil {
		return 0, err
	}
	keep := func(chain string) bool { return trees[chain] || used[chain] }
	var going []string
	for _, k := range all {
		if !keep(k.Chain) {
			going = append(going, k.Path)
		}
	}
	m, err := ownMap()
	if err != nil {
		return 0, err
	}
	if sizes, err := monitor.Usage(executable(), m, going); err == nil {
		for _, n := range sizes {
			freed += n
		}
	}
	err = unpacked.Collect(a.stateRoot(), keep, func(dirs []string) error { return monitor.RemoveOwned(executable(), m, dirs) })
	return freed, err
}

// treesInUse are the chain ids of the merged trees that containers are made of.
func (a *App) treesInUse() (map[string]bool, error) {
	st, err := state.Open(a.stateRoot())
	if err != nil {
		return nil, err
	}
	all, err := st.List()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, rec := range all {
		p, err := launch.Load(st, rec, executable(), a.stateRoot(), false)
		if err != nil {
			if _, ferr := st.Find(rec.ID); errors.Is(ferr, state.ErrNotFound) {
				continue // it has just been removed
			}
			return nil, err
		}
		if p.Image != nil {
			used[filepath.Base(p.Image.Tree)] = true
		}
	}
	return used, nil
}

// unpackedSizes are how many bytes the unpacked images take, by chain id.
func (a *App) unpackedSizes() (map[string]int64, error) {
	all, err := unpacked.List(a.stateRoot())
	if err != nil || len(all) == 0 {
		return nil, err
	}
	m, err := ownMap()
	if err != nil {
		return nil, err
	}
	sizes := map[string]int64{}
	for _, k := range all {
		n, err := monitor.Usage(executable(), m, []string{k.Path})
		if err != nil {
			return nil, err
		}
		sizes[k.Chain] += n[0]
	}
	return sizes, nil
}
