package main

import (
	"errors"
	"fmt"

	"github.com/urun-dev/urun/internal/files"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
)

// containerFiles is access to a container's files, together with its record.
type containerFiles struct {
	*files.Container
	rec    *state.Record
	st     *state.Store
	unlock func() error
	memory bool // and does not run: nothing can be changed
}

// openFiles opens the files of a container, whether it runs or not.
func (a *App) openFiles(ref string) (*containerFiles, error) {
	st, err := a.Containers()
	if err != nil {
		return nil, err
	}
	rec, err := st.Find(ref)
	if err != nil {
		return nil, err
	}
	f := &containerFiles{rec: rec, st: st, unlock: func() error { return nil }}
	if isUp(rec) {
		m := launch.RecordMap(rec)
		f.Container, err = files.Running(st.Dir(rec.ID), rec.Init, m.Contains(0) && m.ContainsGID(0), rec.Chroot)
	} else {
		err = f.openStopped(a)
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", rec.Name, err)
	}
	return f, nil
}

func (f *containerFiles) openStopped(a *App) error {
	layers, err := a.layers(f.st, f.rec)
	if err != nil {
		return err
	}
	f.memory = layers.Memory
	h, err := lockStopped(f.st, f.rec)
	if err != nil {
		return err
	}
	if h == nil {
		return errors.New("it has just been started")
	}
	f.unlock = h.Close
	if f.Container, err = files.Stopped(a.holder(launch.RecordMap(f.rec)), h, layers); err != nil {
		return errors.Join(err, h.Close())
	}
	return nil
}

// Close gives the files up. What was written is there for sure only if it succeeds.
func (f *containerFiles) Close() error { return errors.Join(f.Container.Close(), f.unlock()) }

// errInMemory: what is written to a container that does not run would not be there when it does.
var errInMemory = errors.New("its files are in memory, and only while it runs")

// layers are what a container's file system is made of.
func (a *App) layers(st *state.Store, rec *state.Record) (files.Layers, error) {
	p, err := launch.Load(st, rec, executable(), a.stateRoot(), a.Debug)
	if err != nil {
		return files.Layers{}, err
	}
	l := files.Layers{
		Dir: st.Dir(rec.ID), Image: p.Image, LowerDir: p.Container.Rootfs, Mounts: p.Container.Spec.Mounts,
		Plain: p.Container.Plain, Chroot: p.Container.Chroot, Unpacked: p.Unpacked(),
		Root: p.Map.Contains(0) && p.Map.ContainsGID(0), Storage: stage.Storage(rec.Storage),
	}
	if l.Memory = p.Container.InMemory(); l.Memory {
		l.Storage = "" // what the layer was made with says nothing of what is on disk
	}
	if l.Storage == "" && p.Container.Storage != "auto" {
		l.Storage = stage.Storage(p.Container.Storage)
	}
	if l.LowerDir != "" {
		l.Image = &monitor.Image{Dir: l.LowerDir, Serve: launch.ServeOptions(p.Map)}
	}
	return l, nil
}
