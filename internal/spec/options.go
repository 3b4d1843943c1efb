package spec

// Options are the flags of `urun run` as given. The zero value is a run
// without flags.
type Options struct {
	// Image as the user wrote it, and the command line behind it.
	Image string
	Args  []string

	// Identity.
	Name, CIDFile          string
	Hostname, Domainname   string
	Labels, LabelFiles     []string
	Annotations            []string
	Platform, Pull         string
	Rootfs                 string // directory instead of an image
	Storage, LogLevel      string
	RootEmulation          string
	Remove, Replace, Quiet bool
	Volatile               bool

	// Process.
	Interactive, TTY, Detach bool
	Attach                   []string
	Init                     bool
	SigProxy                 *bool
	Entrypoint               *string // nil: the image's; "": none
	Workdir, User            string
	GroupAdd                 []string
	Env, EnvFiles            []string
	StopSignal               string
	StopTimeout              *int // seconds; -1 waits for ever
	Ulimits                  []string
	Timezone                 string
	LifeOptions

	// Files.
	Volumes, Mounts, Tmpfs []string
	ReadOnly               bool
	Writable               string
	ShmSize                string
	Devices                []string
	CDIDirs                []string // of specifications of devices, in place of the usual

	// Network.
	Network                    string
	MoreNetworks               []string // --network given again
	IP, IP6, MACAddress        string
	NetworkAliases             []string
	Publish                    []string
	PublishAll                 bool
	Expose                     []string
	DNS, DNSSearch, DNSOptions []string
	AddHosts                   []string

	// Namespaces.
	UserNS, PID, IPC, UTS, CgroupNS string

	// Security.
	CapAdd, CapDrop []string
	SecurityOpts    []string
	Privileged      bool
	Sysctls         []string

	// Resources.
	Resources ResourceOptions
	Cgroups   string

	HPCOptions
}

// ResourceOptions are the flags of `urun run` and `urun update` that limit
// resources, as given.
type ResourceOptions struct {
	Memory, MemorySwap, MemoryReservation, MemoryHigh string
	CPUs                                              string
	CPUShares, CPUQuota, CPUPeriod                    int64
	CPUWeight                                         uint64
	CPUSet, CPUSetMems                                string
	PidsLimit                                         *int64
	IOWeight                                          uint64 // cgroup v2's unit
	BlkioWeight                                       uint16 // docker's

	DeviceReadBPS, DeviceWriteBPS, DeviceReadIOPS, DeviceWriteIOPS []string

	Hugetlb      []string
	OOMScoreAdj  *int
	CgroupParent string
	CgroupConf   []string
}
