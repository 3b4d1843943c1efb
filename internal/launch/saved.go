package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

// planFile holds, in a container's directory, what starting it again takes
// beside its OCI runtime spec.
const planFile = "plan.json"

// planVersion is the version of that file's format.
const planVersion = 1

type savedPlan struct {
	Version   int
	Container *spec.Container // without its Spec
	Image     *monitor.Image
	Map       userns.Map
	Filter    filter
}

func (p *Plan) save(dir string) error {
	c := *p.Container
	c.Spec = nil
	raw, err := json.Marshal(savedPlan{planVersion, &c, p.Image, p.Map, p.filter})
	if err != nil {
		return fmt.Errorf("encode plan: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, planFile), raw, 0o600); err != nil {
		return fmt.Errorf("write plan: %w", err)
	}
	return nil
}

// Load reads the plan by which a container was made.
func Load(st *state.Store, rec *state.Record, exe, stateRoot string, debug bool) (Plan, error) {
	p := Plan{Exe: exe, StateRoot: stateRoot, ImageID: rec.ImageID, Debug: debug}
	raw, err := os.ReadFile(filepath.Join(st.Dir(rec.ID), planFile))
	if err != nil {
		err = state.Vanished(st.Dir(rec.ID), err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return p, fmt.Errorf("container %s can not be started again: it was made by an urun that kept no plan", rec.Name)
	}
	if err != nil {
		return p, fmt.Errorf("read plan: %w", err)
	}
	var s savedPlan
	if err := json.Unmarshal(raw, &s); err != nil {
		return p, fmt.Errorf("read plan of container %s: %w", rec.Name, err)
	}
	if s.Version != planVersion || s.Container == nil {
		return p, fmt.Errorf("container %s can not be started: its plan has version %d, this urun knows %d", rec.Name, s.Version, planVersion)
	}
	p.Container, p.Image, p.Map, p.filter = s.Container, s.Image, s.Map, s.Filter
	p.Container.Name = rec.Name // it may have got another
	p.Container.Spec, err = st.Spec(rec.ID)
	return p, err
}
