package doctor

import "slices"

// Status is how well one thing works.
type Status string

const (
	// OK is as it should be.
	OK Status = "ok"
	// Degraded works, but not as it would elsewhere; the detail says what is lost.
	Degraded Status = "degraded"
	// Missing does not work, and a plain `urun run` with it.
	Missing Status = "missing"
)

// Finding is what is to be said about one thing.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	// Detail says what was found, in a few words.
	Detail string `json:"detail"`
	// Cure is what the user can do without anybody's help; "" for nothing. Where a command does it, it is a line for a shell,
	// in which all that is no command stands behind a #; so is Admin.
	Cure string `json:"cure,omitempty"`
	// Admin is the line to send to the administrator.
	Admin string `json:"admin,omitempty"`
}

// Works says whether a plain `urun run` works on a machine of these findings.
func Works(all []Finding) bool {
	return !slices.ContainsFunc(all, func(f Finding) bool { return f.Status == Missing })
}
