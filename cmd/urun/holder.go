package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/userns"
)

// linger is how long a holder stays after its last container: as --linger or
// URUN_LINGER say, else as is fit for this process.
func linger(flag *time.Duration) (time.Duration, error) {
	if flag == nil {
		return holder.Linger(), nil
	}
	if *flag < 0 {
		return 0, fmt.Errorf("--linger: %s is negative", *flag)
	}
	return *flag, nil
}

// holder says which process is to start the monitor of a container with the map m.
func (a *App) holder(m userns.Map) holder.Options {
	return holder.Options{Exe: executable(), Store: a.stateRoot(), Map: m, Linger: a.Linger}
}

// showHolders shows the holders of this user, for urun info.
func showHolders(app *App, row func(key string, value any)) {
	all, err := holder.List(app.stateRoot())
	if err != nil {
		row("holder", err)
		return
	}
	if len(all) == 0 {
		row("holder", "none runs; one would stay for "+app.Linger.String()+" after the last container")
	}
	for _, s := range all {
		row("holder", fmt.Sprintf("process %d in %s: %d containers; stays for %s after the last; %s", s.PID, s.Dir, s.Stages, s.Linger, s.Map))
		for _, img := range s.Images {
			row("image server", fmt.Sprintf("process %d: %.12s for %d containers", img.PID, strings.TrimPrefix(img.ID, "sha256:"), img.Users))
		}
	}
}
