// Package server is the process that holds a user's bridges: the stage __infra. See package infra.
//
// Its main goroutine keeps its thread and starts the network stage, which dies with that thread. Another thread lives
// in the bridges' network namespace (netns.go): what is made there belongs there. All else, such as the questions to
// the host's resolvers, happens in the host's network namespace. What a monitor asks for is done under one lock, one
// thing after the other.
package server
