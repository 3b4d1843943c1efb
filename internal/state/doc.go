// Package state keeps one record a container on disk.
//
// A container is a directory, containers/ID:
//
//	state.json   the Record; replaced whole, by an exchange of names with the old
//	             one, .state.json, which the next one overwrites
//	config.json  the OCI runtime spec, written once
//	plan.json    what starting the container takes beside that
//	lock         held by flock(2) as long as the container's monitor lives
//	...          what the container's other parts keep: upper, work, etc, log
//
// and, when it has a name, a symlink names/NAME -> ID, whose creation is what
// makes a name unique.
//
// A directory appears under its ID only when it is whole and its lock is held:
// it is made as .new-ID and renamed. So whoever finds a container whose lock is
// free knows that its monitor is gone, however it died, and may clean up after
// it (Store.Abandoned).
package state
