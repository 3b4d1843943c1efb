package launch

import (
	"errors"
	"os"

	"github.com/urun-dev/urun/internal/state"
)

// limit puts the container's processes into a cgroup with its limits, and
// returns the cgroup that init is started in; nil where nothing is limited.
func (p Plan) limit(pending *Pending, handle *state.Handle) (*os.File, error) {
	if !p.Container.Limits.Any() {
		return nil, nil
	}
	return nil, errors.New("limits are not available")
}
