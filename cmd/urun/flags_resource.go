package main

import "github.com/urun-dev/urun/internal/spec"

// LimitFlags are the limits that `urun run` sets and `urun update` changes.
type LimitFlags struct {
	Memory            string   `short:"m" placeholder:"SIZE" group:"Resources" help:"Limit of memory; -1 for none."`
	MemorySwap        string   `placeholder:"SIZE" group:"Resources" help:"Limit of memory and swap together; -1 for unlimited swap."`
	MemoryReservation string   `placeholder:"SIZE" group:"Resources" help:"Memory that is reclaimed last."`
	MemoryHigh        string   `placeholder:"SIZE" group:"Resources" help:"Memory above which the container is slowed down and reclaimed from; -1 for none."`
	CPUs              string   `name:"cpus" placeholder:"NUMBER" group:"Resources" help:"Number of CPUs, such as 1.5."`
	CPUShares         int64    `name:"cpu-shares" short:"c" placeholder:"N" group:"Resources" help:"Weight against others, 1024 being normal."`
	CPUWeight         uint64   `name:"cpu-weight" placeholder:"N" group:"Resources" help:"The same in the kernel's unit: 1 to 10000, 100 being normal."`
	CPUQuota          int64    `name:"cpu-quota" placeholder:"µs" group:"Resources" help:"CPU time a period; -1 for no limit."`
	CPUPeriod         int64    `name:"cpu-period" placeholder:"µs" group:"Resources" help:"Length of the period."`
	CPUSet            string   `name:"cpuset-cpus" placeholder:"LIST" group:"Resources" help:"CPUs to run on, such as 0-2,4."`
	CPUSetMems        string   `name:"cpuset-mems" placeholder:"LIST" group:"Resources" help:"Memory nodes to use, such as 0."`
	PidsLimit         *int64   `placeholder:"N" group:"Resources" help:"Limit of processes; -1 for none."`
	IOWeight          uint64   `name:"io-weight" placeholder:"N" group:"Resources" help:"Share of the disks against others: 1 to 10000, 100 being normal."`
	BlkioWeight       uint16   `placeholder:"N" group:"Resources" help:"The same in docker's unit: 10 to 1000."`
	DeviceReadBPS     []string `name:"device-read-bps" sep:"none" placeholder:"DEVICE:RATE" group:"Resources" help:"Limit of bytes a second read from a disk, such as /dev/sda:10mb."`
	DeviceWriteBPS    []string `name:"device-write-bps" sep:"none" placeholder:"DEVICE:RATE" group:"Resources" help:"Limit of bytes a second written."`
	DeviceReadIOPS    []string `name:"device-read-iops" sep:"none" placeholder:"DEVICE:N" group:"Resources" help:"Limit of reads a second."`
	DeviceWriteIOPS   []string `name:"device-write-iops" sep:"none" placeholder:"DEVICE:N" group:"Resources" help:"Limit of writes a second."`
	Hugetlb           []string `sep:"none" placeholder:"PAGESIZE:SIZE" group:"Resources" help:"Limit of huge pages of a size, such as 2MB:64m."`
	CgroupConf        []string `sep:"none" placeholder:"KEY=VALUE" group:"Resources" help:"Write to a file of the container's cgroup, such as memory.oom.group=1."`
}

// ResourceFlags say how much a container may use.
type ResourceFlags struct {
	LimitFlags `embed:""`

	Ulimit       []string `placeholder:"NAME=SOFT[:HARD]" sep:"none" group:"Resources" help:"Resource limit of the command, see getrlimit(2)."`
	OOMScoreAdj  *int     `name:"oom-score-adj" placeholder:"N" group:"Resources" help:"Who is killed first when the machine is out of memory: -1000 to 1000."`
	CgroupParent string   `placeholder:"SLICE|DIR" group:"Resources" help:"systemd slice, or directory of a cgroup of yours, for the container's cgroup."`
	Cgroups      string   `placeholder:"MODE" group:"Resources" help:"try: leave out limits that cannot be kept; enforce: have a cgroup in any case; disabled: have none. By default a limit that cannot be kept is an error."`
}

// options are the flags in package spec's form.
func (f *LimitFlags) options() spec.ResourceOptions {
	return spec.ResourceOptions{
		Memory: f.Memory, MemorySwap: f.MemorySwap, MemoryReservation: f.MemoryReservation, MemoryHigh: f.MemoryHigh,
		CPUs: f.CPUs, CPUShares: f.CPUShares, CPUWeight: f.CPUWeight, CPUQuota: f.CPUQuota, CPUPeriod: f.CPUPeriod,
		CPUSet: f.CPUSet, CPUSetMems: f.CPUSetMems, PidsLimit: f.PidsLimit, IOWeight: f.IOWeight, BlkioWeight: f.BlkioWeight,
		DeviceReadBPS: f.DeviceReadBPS, DeviceWriteBPS: f.DeviceWriteBPS, DeviceReadIOPS: f.DeviceReadIOPS, DeviceWriteIOPS: f.DeviceWriteIOPS,
		Hugetlb: f.Hugetlb, CgroupConf: f.CgroupConf,
	}
}

func (f *ResourceFlags) options() spec.ResourceOptions {
	o := f.LimitFlags.options()
	o.OOMScoreAdj, o.CgroupParent = f.OOMScoreAdj, f.CgroupParent
	return o
}
