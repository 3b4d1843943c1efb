// Package launch starts containers: it makes what a container needs on disk
// (its record, its files in /etc, its volumes), asks a new monitor to run it,
// and speaks with the monitor while it runs. The code runs in the command (P0).
package launch
