package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// volumeDir is where a volume's files are.
func volumeDir(root, name string) string { return filepath.Join(root, "volumes", name, "_data") }

// nameVolumes names the anonymous volumes, puts the sources of all into the
// spec, and returns the directories of the anonymous ones. Nothing is made yet:
// first the container's record tells of them.
func nameVolumes(c *spec.Container, root string) (anonymous []string, err error) {
	for i, v := range c.Volumes {
		if v.Name == "" {
			v.Name = state.NewID()
			anonymous = append(anonymous, filepath.Dir(volumeDir(root, v.Name)))
		} else if err := state.CheckName(v.Name); err != nil {
			return nil, fmt.Errorf("volume: %w", err)
		}
		c.Volumes[i] = v
		c.Spec.Mounts[v.Mount].Source = volumeDir(root, v.Name)
	}
	return anonymous, nil
}

// makeVolumes makes the container's volumes where they do not exist.
func makeVolumes(c *spec.Container) error {
	for _, v := range c.Volumes {
		dir := c.Spec.Mounts[v.Mount].Source
		// Nobody else on the host may reach a set-user-ID program that a
		// container left in a volume.
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return fmt.Errorf("make volume %s: %w", v.Name, err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make volume %s: %w", v.Name, err)
		}
	}
	return nil
}
