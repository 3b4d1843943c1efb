// Package network keeps a user's container networks on disk: what they are called, which addresses they have, and which
// of these are taken. Nothing here runs: the networks' bridges live in the process of package infra while containers
// are on them.
//
// A network is one file, networks/<name>.json, replaced whole. Who has which address is in the records of the
// containers themselves (state.Endpoint): an address is taken while the monitor of the container that has it lives. So
// nothing has to be given back, whoever is killed. networks/lock is held while networks change and while an
// address is chosen and written down.
//
// The code runs in commands and, for addresses, in monitors.
package network
