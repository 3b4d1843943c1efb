package main

// JoinFlags make the ranks of a parallel program on a node share one container.
type JoinFlags struct {
	Join    bool   `group:"HPC" help:"Share one container with the other ranks that the launcher starts on this node: one user namespace, one mount, one image server. The first makes it, it ends with the last."`
	JoinCT  int    `name:"join-ct" placeholder:"N" group:"HPC" help:"How many ranks share it, as Slurm and Open MPI tell by themselves; implies --join."`
	JoinPID int    `name:"join-pid" placeholder:"PID" group:"HPC" help:"Join the container that process PID is in; implies --join."`
	JoinTag string `name:"join-tag" placeholder:"TAG" group:"HPC" help:"Name of the group of ranks, instead of the job step or the parent process; implies --join."`
}

func (f *JoinFlags) wanted() bool {
	return f.Join || f.JoinCT != 0 || f.JoinPID != 0 || f.JoinTag != ""
}
