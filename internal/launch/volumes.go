package launch

import (
	"errors"
	"path/filepath"

	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/volume"
)

// nameVolumes names the anonymous volumes, puts the sources of all into the
// spec, and notes in the record which there are. Nothing is made yet: first the
// container's record tells of them.
func nameVolumes(c *spec.Container, root string, rec *state.Record) error {
	st := volume.Open(root)
	for i, v := range c.Volumes {
		if v.Name == "" {
			v.Name = state.NewID()
			rec.Volumes = append(rec.Volumes, filepath.Dir(st.Path(v.Name)))
		} else {
			if err := volume.CheckName(v.Name); err != nil {
				return err
			}
			rec.NamedVolumes = append(rec.NamedVolumes, v.Name)
		}
		c.Volumes[i] = v
		c.Spec.Mounts[v.Mount].Source = st.Path(v.Name)
	}
	return nil
}

// holdVolumes keeps the container's volumes from being removed until its record
// tells of them.
func holdVolumes(c *spec.Container, root string) (release func(), err error) {
	if len(c.Volumes) == 0 {
		return func() {}, nil
	}
	return volume.Open(root).Hold()
}

// makeVolumes makes the container's volumes where they do not exist.
func makeVolumes(c *spec.Container, root string, rec *state.Record) error {
	st := volume.Open(root)
	var errs []error
	for _, v := range c.Volumes {
		anonymous := false
		for _, dir := range rec.Volumes {
			anonymous = anonymous || st.NameOf(dir) == v.Name
		}
		_, err := st.Make(volume.Volume{Name: v.Name, Anonymous: anonymous})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
