package state

import (
	"errors"
	"fmt"
)

// Rename gives the container another name. The new name is taken before the
// record says so and the old one is freed after: a crash between leaves a name
// too many, which is free when the container is gone.
func (h *Handle) Rename(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if name == h.Name {
		return fmt.Errorf("rename container: it has the name %s already", name)
	}
	old := h.Name
	if err := h.s.takeName(name, h.ID); err != nil {
		return fmt.Errorf("rename container: %w", err)
	}
	h.Name = name
	if err := h.Save(); err != nil {
		h.Name = old
		return errors.Join(err, h.s.freeName(name, h.ID))
	}
	return h.s.freeName(old, h.ID)
}
