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
	Remove, Replace, Quiet bool
	Volatile               bool

	// Process.
	Interactive, TTY, Detach bool
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

	// Files.
	Volumes, Mounts, Tmpfs []string
	ReadOnly               bool
	ShmSize                string
	Devices                []string

	// Network.
	Network                    string
	Publish                    []string
	PublishAll                 bool
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
	Memory, MemorySwap, MemoryReservation string
	CPUs                                  string
	CPUShares, CPUQuota, CPUPeriod        int64
	CPUSet                                string
	PidsLimit                             *int64
	Cgroups                               string
}
