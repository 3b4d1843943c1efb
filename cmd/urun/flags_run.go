package main

import (
	"errors"

	"github.com/alecthomas/kong"

	"github.com/urun-dev/urun/internal/spec"
)

// RunFlags are the flags of `urun run` and `urun create`, with docker's names
// and letters. They only carry words: what these mean and which exclude each
// other is package spec's business. `-h` is the host name, as in docker; help is --help alone.
//
// Everything behind IMAGE belongs to the command: "partial" passthrough ends
// flag parsing there, and still refuses unknown flags before it.
type RunFlags struct {
	ProcessFlags   `embed:""`
	FileFlags      `embed:""`
	NetworkFlags   `embed:""`
	NamespaceFlags `embed:""`
	SecurityFlags  `embed:""`
	ResourceFlags  `embed:""`
	ImageFlags     `embed:""`
	LifeFlags      `embed:""`
	HPCFlags       `embed:""`

	ImageAndCommand []string `arg:"" optional:"" passthrough:"partial" name:"image" help:"Image, and the command to run in it instead of the image's own. With --rootfs all of it is the command."`
}

// ProcessFlags say what runs and who watches it.
type ProcessFlags struct {
	Interactive bool `short:"i" group:"Process" help:"Keep standard input open."`
	TTY         bool `name:"tty" short:"t" group:"Process" help:"Give the command a terminal."`
	Rm          bool `name:"rm" group:"Process" help:"Remove the container when it ends."`
	Init        bool `group:"Process" help:"Run the command below an init that reaps orphans."`

	Name    string `placeholder:"NAME" group:"Process" help:"Name of the container."`
	Replace bool   `group:"Process" help:"Remove a container of this name first."`
	CIDFile string `name:"cidfile" placeholder:"FILE" group:"Process" help:"Write the id to a new file."`

	Env        []string `short:"e" sep:"none" placeholder:"NAME[=VALUE]" group:"Process" help:"Set a variable; without a value, take it from here."`
	EnvFile    []string `sep:"none" placeholder:"FILE" group:"Process" help:"Read variables from a file, one a line."`
	Workdir    string   `short:"w" placeholder:"DIR" group:"Process" help:"Working directory inside."`
	User       string   `short:"u" placeholder:"USER[:GROUP]" group:"Process" help:"Name or id inside."`
	GroupAdd   []string `sep:"none" placeholder:"GROUP" group:"Process" help:"Additional group; keep-groups keeps your own."`
	Entrypoint *string  `placeholder:"WORD" group:"Process" help:"Replace the image's entrypoint; empty to have none."`

	StopSignal  string   `placeholder:"SIGNAL" group:"Process" help:"Signal that stops the container."`
	StopTimeout *int     `placeholder:"SECONDS" group:"Process" help:"Time from there to SIGKILL; -1 waits for ever."`
	Timezone    string   `aliases:"tz" placeholder:"ZONE" group:"Process" help:"Time zone inside, such as Europe/Berlin; local for the machine's."`
	Label       []string `short:"l" sep:"none" placeholder:"KEY=VALUE" group:"Process" help:"Label of the container."`
	LabelFile   []string `sep:"none" placeholder:"FILE" group:"Process" help:"Read labels from a file, one a line."`
	Annotation  []string `sep:"none" placeholder:"KEY=VALUE" group:"Process" help:"Annotation in the container's OCI spec."`
	LogLevel    string   `placeholder:"LEVEL" group:"Process" help:"Say what is done: debug, info, warn or error."`
}

// FileFlags say what the command finds in its file system.
type FileFlags struct {
	Volume        []string `short:"v" sep:"none" placeholder:"[SRC:]DST[:OPT]" group:"Files" help:"Mount a directory of the host (absolute, or from ./) or a named volume."`
	Mount         []string `sep:"none" placeholder:"KEY=VALUE,..." group:"Files" help:"Mount with type=bind, volume or tmpfs."`
	Tmpfs         []string `sep:"none" placeholder:"DST[:OPT]" group:"Files" help:"Mount a directory in memory."`
	ReadOnly      bool     `name:"read-only" group:"Files" help:"Mount the image read-only."`
	Writable      string   `placeholder:"WHERE" group:"Files" help:"Where changes go: disk, tmpfs (memory: they are gone when the container stops) or none."`
	ShmSize       string   `placeholder:"SIZE" group:"Files" help:"Size of /dev/shm, 64m by default."`
	Device        []string `sep:"none" placeholder:"SRC[:DST]" group:"Files" help:"Pass a device on: a path, or vendor/class=name of a CDI specification such as nvidia.com/gpu=all."`
	CDISpecDir    []string `name:"cdi-spec-dir" sep:"none" placeholder:"DIR" group:"Files" help:"Directory of CDI specifications, in place of $CDI_SPEC_DIRS or /etc/cdi, /var/run/cdi and ~/.config/cdi."`
	RootEmulation string   `placeholder:"WHEN" group:"Security" help:"Emulate the users that are missing where only one id is mapped: auto, on or off."`

	Storage  string `placeholder:"KIND" group:"Files" help:"How layers are merged: auto, overlay, fuse or copy."`
	Volatile bool   `group:"Files" help:"Do not make the container's files outlive a power failure."`
}

// NetworkFlags say how the container reaches the world and is reached.
type NetworkFlags struct {
	Network      []string `aliases:"net" sep:"none" placeholder:"MODE" group:"Network" help:"slirp[:OPTION=VALUE,...], pasta, none, host or container:NAME. Or networks that urun network create made: NAME[,NAME...] or NAME:ip=,ip6=,mac=,alias=; may be repeated."`
	IP           string   `name:"ip" placeholder:"ADDRESS" group:"Network" help:"IPv4 address in the network."`
	IP6          string   `name:"ip6" placeholder:"ADDRESS" group:"Network" help:"IPv6 address in the network."`
	MACAddress   string   `name:"mac-address" placeholder:"MAC" group:"Network" help:"Hardware address in the network."`
	NetworkAlias []string `sep:"none" aliases:"net-alias" placeholder:"NAME" group:"Network" help:"Another name in the network."`
	Publish      []string `short:"p" sep:"none" placeholder:"[[IP:]HOST:]PORT" group:"Network" help:"Publish a port, or a range of them, of the container."`
	PublishAll   bool     `short:"P" group:"Network" help:"Publish all ports that the image exposes."`
	Expose       []string `sep:"none" placeholder:"PORT[/PROTOCOL]" group:"Network" help:"Port, or range of ports, that -P is to publish too."`
	Hostname     string   `short:"h" placeholder:"NAME" group:"Network" help:"Host name inside."`
	Domainname   string   `placeholder:"NAME" group:"Network" help:"NIS domain name inside."`
	DNS          []string `name:"dns" sep:"none" placeholder:"IP" group:"Network" help:"DNS server; none to keep the image's resolv.conf."`
	DNSSearch    []string `name:"dns-search" sep:"none" placeholder:"DOMAIN" group:"Network" help:"DNS search domain; . for none."`
	DNSOption    []string `name:"dns-option" aliases:"dns-opt" sep:"none" placeholder:"OPTION" group:"Network" help:"Resolver option, see resolv.conf(5)."`
	AddHost      []string `sep:"none" placeholder:"NAME:IP" group:"Network" help:"Line for /etc/hosts."`
}

// NamespaceFlags say what is shared, and with whom.
type NamespaceFlags struct {
	UserNS   string `name:"userns" placeholder:"MODE" group:"Namespaces" help:"auto, host, keep-id[:uid=N,gid=N], single, map:CONTAINER:HOST:SIZE,... or container:NAME."`
	PID      string `name:"pid" placeholder:"MODE" group:"Namespaces" help:"private, host or container:NAME."`
	IPC      string `name:"ipc" placeholder:"MODE" group:"Namespaces" help:"private, host or container:NAME."`
	UTS      string `name:"uts" placeholder:"MODE" group:"Namespaces" help:"private, host or container:NAME."`
	CgroupNS string `name:"cgroupns" placeholder:"MODE" group:"Namespaces" help:"private, host or container:NAME."`
}

// SecurityFlags say what the command may do.
type SecurityFlags struct {
	CapAdd      []string `placeholder:"CAP" group:"Security" help:"Add a capability within the user namespace, or ALL."`
	CapDrop     []string `placeholder:"CAP" group:"Security" help:"Drop a capability, or ALL."`
	SecurityOpt []string `sep:"none" placeholder:"OPTION" group:"Security" help:"seccomp=FILE|unconfined, no-new-privileges, mask=PATH:..., unmask=PATH:...|ALL."`
	Privileged  bool     `group:"Security" help:"All capabilities, no seccomp filter, all paths and your devices: no more than you may do yourself."`
	Sysctl      []string `sep:"none" placeholder:"NAME=VALUE" group:"Security" help:"Kernel parameter of the container's namespaces."`
}

// ImageFlags say where the image comes from.
type ImageFlags struct {
	Pull     string   `placeholder:"WHEN" group:"Image" help:"missing (the default), always, never or newer."`
	Platform string   `placeholder:"OS/ARCH" group:"Image" help:"Platform of the image."`
	Without  []string `hidden:"" placeholder:"THING" help:"Do as if this machine had no proc, sys, tun, fuse, pivot, userns or mounts."`
	Rootfs   string   `placeholder:"DIR" group:"Image" help:"Run in a directory instead of an image."`
	Quiet    bool     `short:"q" group:"Image" help:"Show no progress."`

	TLSVerify bool `name:"tls-verify" default:"true" negatable:"" group:"Image" help:"Pull with https and a valid certificate only; on by default. Loopback hosts may speak http."`
}

// runFlagOptions are what the parser needs for RunFlags to have docker's forms.
func runFlagOptions() []kong.Option {
	return []kong.Option{
		// Values may begin with a hyphen: --memory-swap -1.
		kong.WithHyphenPrefixedParameters(true),
		// Kong's help flag has -h, and comes before the host name.
		kong.PostBuild(func(k *kong.Kong) error {
			if k.Model.HelpFlag != nil {
				k.Model.HelpFlag.Short = 0
			}
			return nil
		}),
	}
}

// positional are the words behind the flags. A -- that ends the flags is kept
// by kong, but belongs to us; a later one is the command's.
func (f *RunFlags) positional() []string {
	args := f.ImageAndCommand
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	return args
}

// image is the image that was named; empty with --rootfs.
func (f *RunFlags) image() string {
	args := f.positional()
	if f.Rootfs != "" || len(args) == 0 {
		return ""
	}
	return args[0]
}

// command is the command line behind the image.
func (f *RunFlags) command() []string {
	args := f.positional()
	if f.Rootfs == "" && len(args) > 0 {
		args = args[1:]
	}
	return args
}

// options are the flags in package spec's form.
func (f *RunFlags) options() (spec.Options, error) {
	if f.Rootfs == "" && f.image() == "" {
		return spec.Options{}, errors.New("name an image to run, or a directory with --rootfs")
	}
	return spec.Options{
		Image: f.image(), Args: f.command(),
		Name: f.Name, CIDFile: f.CIDFile, Hostname: f.Hostname, Domainname: f.Domainname,
		Labels: f.Label, LabelFiles: f.LabelFile, Annotations: f.Annotation,
		Platform: f.Platform, Pull: f.Pull, Rootfs: f.Rootfs, Storage: f.Storage, RootEmulation: f.RootEmulation, LogLevel: f.LogLevel,
		Remove: f.Rm, Replace: f.Replace, Quiet: f.Quiet, Volatile: f.Volatile,

		Interactive: f.Interactive, TTY: f.TTY, Init: f.Init,
		Entrypoint: f.Entrypoint, Workdir: f.Workdir, User: f.User, GroupAdd: f.GroupAdd,
		Env: f.Env, EnvFiles: f.EnvFile, StopSignal: f.StopSignal, StopTimeout: f.StopTimeout,
		Ulimits: f.Ulimit, Timezone: f.Timezone, LifeOptions: f.LifeFlags.options(),

		Volumes: f.Volume, Mounts: f.Mount, Tmpfs: f.Tmpfs, ReadOnly: f.ReadOnly, Writable: f.Writable, ShmSize: f.ShmSize, Devices: f.Device, CDIDirs: f.CDISpecDir,

		Network: first(f.Network), MoreNetworks: rest(f.Network), IP: f.IP, IP6: f.IP6, MACAddress: f.MACAddress,
		NetworkAliases: f.NetworkAlias, Publish: f.Publish, PublishAll: f.PublishAll, Expose: f.Expose,
		DNS: f.DNS, DNSSearch: f.DNSSearch, DNSOptions: f.DNSOption, AddHosts: f.AddHost,

		UserNS: f.UserNS, PID: f.PID, IPC: f.IPC, UTS: f.UTS, CgroupNS: f.CgroupNS,

		CapAdd: f.CapAdd, CapDrop: f.CapDrop, SecurityOpts: f.SecurityOpt, Privileged: f.Privileged, Sysctls: f.Sysctl,

		Resources: f.ResourceFlags.options(), Cgroups: f.Cgroups,

		HPCOptions: f.HPCFlags.options(),
	}, nil
}

// first and rest are the values of a flag that is mostly given once.
func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func rest(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	return list[1:]
}
