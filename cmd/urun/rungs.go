package main

import (
	"context"
	"path/filepath"

	"github.com/urun-dev/urun/internal/ladder"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/userns"
)

// rungs finds out what this machine does not give to a container with the map m.
func (a *App) rungs(m userns.Map, without []string) (spec.Rungs, error) {
	lacks, err := ladder.Assess(context.Background(), ladder.Options{
		Exe: executable(), Map: m, Cache: filepath.Join(a.stateRoot(), "probe.json"), Log: a.Log, Without: without,
	})
	if err != nil {
		return spec.Rungs{}, err
	}
	return spec.Rungs{NoProc: lacks[ladder.Proc], NoSys: lacks[ladder.Sys], NoTUN: lacks[ladder.TUN], NoVeth: lacks[ladder.Veth], NoFuse: lacks[ladder.Fuse], NoPivot: lacks[ladder.Pivot], NoUserNS: lacks[ladder.UserNS], NoMounts: lacks[ladder.Mounts]}, nil
}
