// Package infra connects containers by bridges, in a network namespace of the user's own.
//
// One process of a user and store, the stage __infra, holds that namespace. It is started by the monitor of the first
// container that is on a network, in that one's user namespace, and ends with the last. In the namespace there are
//
//	br-<id>   a bridge for each network that a container is on, with the network's gateway address
//	v<...>    the host's end of each container's interface, a veth pair; the other end is eth0, eth1, ... inside
//	tun0      the one way out, served by a network stage (package slirp) in the host's network namespace
//	lo        the resolver, network.Resolver
//
// and a table of nftables: what leaves by tun0 has its address; what was published is translated to the container's;
// networks are kept apart.
//
// A monitor keeps a connection to the process while its container is on a network: its end is the container's leaving.
// This package has the messages and the monitor's end; package server is the process. If the process is killed, one of
// the monitors starts another, gives it the namespace, which the monitors keep open, and all of them say again what
// they had: interfaces, addresses and connections between containers stay, connections to the outside are lost.
//
// The process lets in monitors only: who connects has to be the process that the record of the container, for
// which it speaks, names as its monitor. A container that is shown the socket by a bind mount is not.
package infra
