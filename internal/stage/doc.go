// Package stage is the code of a container's init (P3): it runs as pid 1 of the
// new namespaces, sets the container up and becomes the user's command.
//
// The set-up is a table of named steps (steps.go); the name of the step that
// fails enters the error. Everything the steps need arrives in one Config. The
// code runs on one locked thread, since namespaces, capabilities and seccomp
// filters belong to threads and only this one executes the command.
package stage
