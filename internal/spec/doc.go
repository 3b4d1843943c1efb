// Package spec turns an image's configuration and the flags of `urun run` into
// an OCI runtime spec.
//
// Build is a pure function of its two arguments: what it has to know of the
// machine comes through Facts and its Host, so that golden files can hold it.
// It runs in the command (P0), before any process of the container exists.
//
// A flag that cannot be honoured is an error, never ignored. Flags have
// docker's meaning; where docker's and podman's differ, docker's words and
// defaults count and podman's extensions are accepted.
package spec
