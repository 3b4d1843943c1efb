package main

import "github.com/urun-dev/urun/internal/spec"

// HPCFlags are for jobs of batch systems and for parallel programs.
type HPCFlags struct {
	Bind       []string `short:"B" sep:"none" placeholder:"SRC[:DST[:ro]],..." group:"HPC" help:"Mount directories of the host, at their own paths unless another is named."`
	Home       *bool    `negatable:"" group:"HPC" help:"Mount your home and the working directory, and work there."`
	HPC        *bool    `name:"hpc" negatable:"" group:"HPC" help:"For ranks of parallel programs: the host's network, IPC and processes, the launcher's variables and files, fabric devices, your groups."`
	PreserveFD []uint   `name:"preserve-fd" placeholder:"FD,..." group:"HPC" help:"Pass open files on, under their numbers."`
}

// options are the flags in package spec's form, without the configuration.
func (f *HPCFlags) options() spec.HPCOptions {
	return spec.HPCOptions{Binds: f.Bind, Home: f.Home != nil && *f.Home, HPC: f.HPC != nil && *f.HPC, PreserveFDs: f.PreserveFD}
}
