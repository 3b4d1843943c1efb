// Package volume keeps the volumes of a store: directories that outlive
// containers.
//
//	volumes/NAME/_data        the files; owners are of the containers' user namespaces
//	volumes/NAME/volume.json  labels and times; replaced whole
//	volumes/.gone-XXXX        being removed; the next removal finishes it
//	volumes.lock              see below
//
// Whoever makes a container holds the lock, shared, from before its volumes are
// made until its record tells of them. Whoever removes volumes takes the lock for
// itself, asks which volumes containers have, and renames those that nobody has.
// So no container ever loses a volume that it has been given, and no volume is
// removed between its making and its use. The files go after the lock has been
// given back: that may take its time.
//
// The package runs in the command (P0). It does not delete files of subordinate ids
// itself: the caller says how (a stage in a user namespace).
package volume
