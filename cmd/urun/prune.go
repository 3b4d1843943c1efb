package main

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/volume"
)

// pruned removes what nothing needs, says what went, and adds up the room that
// it gave, in bytes.
type pruned struct {
	app   *App
	freed int64
	said  bool
}

func (p *pruned) title(s string) {
	if p.said {
		fmt.Fprintln(p.app.Stdout)
	}
	p.said = true
	fmt.Fprintln(p.app.Stdout, s)
}

// volumes removes the volumes that no container has: anonymous ones, or all.
func (p *pruned) volumes(all bool, keep filters[*volume.Volume]) error {
	sizes := map[string]int64{}
	gone, err := p.app.removeVolumes(func(v *volume.Volume) bool {
		if !all && !v.Anonymous || !keep.match(v) {
			return false
		}
		// Before it goes: afterwards nobody can tell.
		if size, err := p.app.volumeSize(v); err == nil {
			sizes[v.Name] = size
		}
		return true
	})
	if len(gone) > 0 {
		p.title("Deleted Volumes:")
	}
	for _, v := range gone {
		fmt.Fprintln(p.app.Stdout, v.Name)
		p.freed += sizes[v.Name]
	}
	return err
}

// containers removes the containers that do not run.
func (p *pruned) containers(keep filters[*state.Record]) error {
	st, err := p.app.Containers()
	if err != nil {
		return err
	}
	all, err := st.List()
	if err != nil {
		return err
	}
	var errs []error
	first := true
	for _, rec := range all {
		if isUp(rec) || rec.Status == state.Creating || !keep.match(rec) {
			continue
		}
		sizes, err := p.app.containerSizes(st, []*state.Record{rec})
		if err == nil {
			err = p.app.removeContainer(st, rec.ID, false, false)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if first {
			p.title("Deleted Containers:")
			first = false
		}
		fmt.Fprintln(p.app.Stdout, rec.ID)
		p.freed += sizes[rec.ID].Written
	}
	return errors.Join(errs...)
}

// images removes the images without a name, or all, that no container uses.
func (p *pruned) images(all bool, keep filters[*image.Image]) error {
	store, err := p.app.Store()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	choose := keep.match
	if len(keep) == 0 {
		choose = nil // no image need be read
	}
	r, err := store.Prune(ctx, all, choose)
	if len(r.Untagged)+len(r.Deleted) > 0 {
		p.title("Deleted Images:")
	}
	p.freed += r.Freed
	return errors.Join(printRemoved(p.app, r), err)
}

// total says how much room there is now.
func (p *pruned) total() error {
	if p.said {
		fmt.Fprintln(p.app.Stdout)
	}
	_, err := fmt.Fprintf(p.app.Stdout, "Total reclaimed space: %s\n", humanSize(p.freed))
	return err
}

// volumeSize is how many bytes a volume's files have.
func (a *App) volumeSize(v *volume.Volume) (int64, error) {
	m, err := ownMap()
	if err != nil {
		return 0, err
	}
	sizes, err := monitor.Usage(executable(), m, []string{v.Path})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return sizes[0], nil
}

func createdAt(rec *state.Record) time.Time { return rec.Created }
