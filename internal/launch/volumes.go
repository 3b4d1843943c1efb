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

// makeVolumes makes the container's volumes where they do not exist, and puts
// their sources into the spec. It returns the directories of the anonymous ones.
func makeVolumes(c *spec.Container, root string) (anonymous []string, err error) {
	for _, v := range c.Volumes {
		name := v.Name
		if name == "" {
			name = state.NewID()
			anonymous = append(anonymous, filepath.Dir(volumeDir(root, name)))
		} else if err := state.CheckName(name); err != nil {
			return anonymous, fmt.Errorf("volume: %w", err)
		}
		dir := volumeDir(root, name)
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return anonymous, fmt.Errorf("make volume %s: %w", name, err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return anonymous, fmt.Errorf("make volume %s: %w", name, err)
		}
		c.Spec.Mounts[v.Mount].Source = dir
	}
	return anonymous, nil
}
