package state

import (
	"errors"
	"time"
)

// Further stations of a container's life.
const (
	// Starting is a container that has been there before and is being started:
	// what is of it must not be thrown away when that breaks off.
	Starting Status = "starting"
	// Restarting waits for its restart policy to start it again.
	Restarting Status = "restarting"
	// Dead is one whose record can not be read; it can only be removed.
	Dead Status = "dead"
)

// Ended tells whether nothing of the container runs or is about to.
func (s Status) Ended() bool { return s == Created || s == Exited || s == Dead }

// Restart is what a record keeps of the restart policy.
type Restart struct {
	Policy  string `json:"policy"` // "no", "on-failure", "always" or "unless-stopped"
	Retries int    `json:"retries,omitempty"`
	// Count is how often the policy has started it again since a command did.
	Count int `json:"count,omitempty"`
	// Stopped tells that a user stopped it, after which no policy starts it.
	Stopped bool `json:"stopped,omitempty"`
}

// Wanted tells whether a container that ended with a status is to be started again.
func (r Restart) Wanted(code int) bool {
	switch r.Policy {
	case "always", "unless-stopped":
		return !r.Stopped
	case "on-failure":
		return !r.Stopped && code != 0 && (r.Retries == 0 || r.Count < r.Retries)
	}
	return false
}

// OnBoot tells whether it is to be started when the machine comes up.
func (r Restart) OnBoot() bool {
	return r.Policy == "always" || r.Policy == "unless-stopped" && !r.Stopped
}

// ChangeRestart gives the container another restart policy, which counts its tries from the beginning. One that
// is removed at its end has none.
func (h *Handle) ChangeRestart(r Restart) error {
	if h.Record.Remove && r.Policy != "no" {
		return errors.New("it is removed when it ends (--rm), so no policy can start it again")
	}
	before := h.Restart
	h.Restart = Restart{Policy: r.Policy, Retries: r.Retries, Stopped: before.Stopped}
	if err := h.Save(); err != nil {
		h.Restart = before
		return err
	}
	return nil
}

// Health is what the checks of a container have found.
type Health struct {
	Status        string  `json:"Status"` // "starting", "healthy" or "unhealthy"
	FailingStreak int     `json:"FailingStreak"`
	Log           []Probe `json:"Log"` // the last few
}

// Probe is one check, in docker's form.
type Probe struct {
	Start    time.Time `json:"Start"`
	End      time.Time `json:"End"`
	ExitCode int       `json:"ExitCode"`
	Output   string    `json:"Output"`
}
