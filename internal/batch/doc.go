// Package batch knows batch systems and launchers of parallel programs by what
// they put into the environment: whether this process belongs to a job, which
// ranks of a parallel program belong together, and how many of them this node has.
//
// It reads nothing but environment variables, which callers give it, and serves
// any process.
package batch
