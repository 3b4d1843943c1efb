package spec

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// HPCOptions are the flags for jobs of batch systems and parallel programs.
type HPCOptions struct {
	// Binds are --bind, as apptainer has it: comma lists of SOURCE[:TARGET[:ro]].
	Binds []string
	// SiteBinds are the configuration files': another mount at the same target goes
	// before one, and so does a node without the source.
	SiteBinds []string
	Home      bool // bind the caller's home and working directory
	HPC       bool
	EnvPass   []string // patterns of variables that are the caller's
	// PreserveFDs are numbers of the caller's files that the command keeps.
	PreserveFDs []uint
}

// hpcEnv are the variables of launchers, of the libraries for message passing and of
// the fabrics and accelerators that they use.
var hpcEnv = []string{
	"SLURM_*", "SRUN_*", "PMI_*", "PMI2_*", "PMIX_*", "PRTE_*", "OMPI_*", "OPAL_*", "MPI_*", "MPICH_*", "MPIR_*", "I_MPI_*", "MV2_*", "MVP_*",
	"HYDRA_*", "HYDI_*", "MPIEXEC_*", "PALS_*", "FLUX_*", "PBS_*", "LSB_*", "LSF_*", "OAR_*",
	"UCX_*", "FI_*", "PSM2_*", "PSM3_*", "NCCL_*", "RCCL_*",
	"OMP_*", "KMP_*", "GOMP_*", "MKL_*", "OPENBLAS_*",
	"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL",
}

// hpcDevices are those of fabrics and of shared memory between processes. Of the
// ones with %d a node may have several, from 0 on.
var hpcDevices = []string{
	"/dev/infiniband", "/dev/hfi1_%d", "/dev/cxi%d", "/dev/xpmem", "/dev/knem", "/dev/gdrdrv",
}

// maxHPCDevices bounds the numbers that are looked for.
const maxHPCDevices = 16

// hpcDirs are variables that name directories of the host in which a rank meets its
// launcher: sockets and shared memory of PMIx.
var hpcDirs = []string{"PMIX_SERVER_TMPDIR", "PMIX_DSTORE_ESH_BASE_PATH", "PMIX_DSTORE_21_BASE_PATH"}

// pmixModules are the variables by which Slurm and others tell which modules their side
// of PMIx uses, and those that make the library inside, of whatever version, use the same.
var pmixModules = [][2]string{
	{"PMIX_PTL_MODULE", "PMIX_MCA_ptl"}, {"PMIX_SECURITY_MODE", "PMIX_MCA_psec"}, {"PMIX_GDS_MODULE", "PMIX_MCA_gds"},
}

// hpc makes --hpc the default of the flags that it stands for: the network, IPC and pid
// namespaces of the host, as Apptainer, Charliecloud and Enroot have it. Ranks find
// each other by addresses, by names in /dev/shm and by pids that their launcher tells them.
func (b *builder) hpc() error {
	if err := b.preserve(b.opt.PreserveFDs, "--preserve-fd"); err != nil {
		return err
	}
	if !b.opt.HPC {
		return nil
	}
	o := &b.opt
	if len(o.Publish) == 0 && !o.PublishAll {
		o.Network = cmp.Or(o.Network, "host")
	}
	if o.ShmSize == "" {
		o.IPC = cmp.Or(o.IPC, "host")
	}
	o.PID = cmp.Or(o.PID, "host")
	if len(o.GroupAdd) == 0 {
		o.GroupAdd = []string{keepGroups} // what a project shares belongs to a group
	}
	return b.preservePMI()
}

// preservePMI keeps the file by which a launcher with the protocol PMI-1 or PMI-2 is talked to.
func (b *builder) preservePMI() error {
	value, ok := b.facts.Host.LookupEnv("PMI_FD")
	if !ok {
		return nil
	}
	fd, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return fmt.Errorf("PMI_FD=%s: not the number of a file", value)
	}
	if fd < 3 || slices.Contains(b.c.PreserveFDs, uint(fd)) {
		return nil
	}
	return b.preserve([]uint{uint(fd)}, "PMI_FD")
}

func (b *builder) preserve(fds []uint, what string) error {
	for _, fd := range fds {
		if fd < 3 {
			return fmt.Errorf("%s %d: the standard files are the command's anyway", what, fd)
		}
		if !slices.Contains(b.facts.Files, fd) {
			return fmt.Errorf("%s %d: no file of this number is open", what, fd)
		}
		b.c.PreserveFDs = append(b.c.PreserveFDs, fd)
	}
	if len(fds) > 0 && b.opt.Restart != "" && b.opt.Restart != "no" {
		return conflict(what + " and --restart: a file is passed on once")
	}
	return nil
}

// binds parses --bind and the mounts of --home and --hpc.
func (b *builder) binds() error {
	for _, list := range b.opt.Binds {
		for _, s := range strings.Split(list, ",") {
			v, err := parseBind(s)
			if err == nil {
				err = b.addVolume(v)
			}
			if err != nil {
				return fmt.Errorf("--bind %s: %w", s, err)
			}
		}
	}
	if b.opt.Home {
		if err := b.bindHome(); err != nil {
			return err
		}
	}
	for _, s := range b.opt.SiteBinds {
		if err := b.siteBind(s); err != nil {
			return err
		}
	}
	if b.opt.HPC {
		return b.bindHPC()
	}
	return nil
}

// parseBind parses SOURCE[:TARGET[:ro|rw]].
func parseBind(s string) (volumeFlag, error) {
	parts := strings.Split(s, ":")
	if len(parts) > 3 || slices.Contains(parts, "") {
		return volumeFlag{}, errors.New("must be SOURCE[:TARGET[:ro]]")
	}
	v := volumeFlag{source: parts[0], target: parts[0]}
	if len(parts) > 1 {
		v.target = parts[1]
	}
	if len(parts) == 3 {
		if parts[2] != "ro" && parts[2] != "rw" {
			return volumeFlag{}, fmt.Errorf("invalid option %q: must be ro or rw", parts[2])
		}
		v.options = parts[2:]
	}
	// Here a source is never the name of a volume.
	if !v.isPath() {
		v.source = "./" + v.source
	}
	target, err := cleanTarget(v.target)
	v.target = target
	return v, err
}

// siteBind adds a mount of the configuration, unless there is a reason not to.
func (b *builder) siteBind(s string) error {
	v, err := parseBind(s)
	if err != nil {
		return fmt.Errorf("bind %s in the configuration: %w", s, err)
	}
	if b.hasTarget(v.target) {
		return nil
	}
	if _, err := b.facts.Host.Stat(v.source); errors.Is(err, fs.ErrNotExist) {
		b.notice(fmt.Sprintf("%s, which the configuration binds, is not on this machine", v.source))
		return nil
	}
	if err := b.addVolume(v); err != nil {
		return fmt.Errorf("bind %s in the configuration: %w", s, err)
	}
	return nil
}

// systemDirs are those of which the image has its own: a working directory in one is
// not bound over it.
var systemDirs = []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr", "/var"}

// bindHome is --home. The working directory becomes the container's.
func (b *builder) bindHome() error {
	home, cwd := b.facts.HomeDir, b.facts.Cwd
	if !path.IsAbs(home) || path.Clean(home) == "/" {
		return hint("set HOME, or use --bind", "--home: %q is no home directory", home)
	}
	if err := b.bindSame(home); err != nil {
		return fmt.Errorf("--home: %w", err)
	}
	if slices.ContainsFunc(systemDirs, func(dir string) bool { return within(cwd, dir) }) || !path.IsAbs(cwd) || cwd == "/" {
		if b.opt.Workdir == "" {
			b.opt.Workdir = home
			b.notice(fmt.Sprintf("%s is the image's own inside: the working directory is %s", cmp.Or(cwd, "the working directory"), home))
		}
		return nil
	}
	if !within(cwd, home) {
		if err := b.bindSame(cwd); err != nil {
			return fmt.Errorf("--home: %w", err)
		}
	}
	b.opt.Workdir = cmp.Or(b.opt.Workdir, cwd)
	return nil
}

// within tells whether a clean path is dir or lies below it.
func within(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// bindSame binds a directory of the host at its own path, unless something is there.
func (b *builder) bindSame(dir string) error {
	dir = path.Clean(dir)
	if b.hasTarget(dir) {
		return nil
	}
	return b.addVolume(volumeFlag{source: dir, target: dir})
}

func (b *builder) bindHPC() error {
	for _, pattern := range hpcDevices {
		for n := range maxHPCDevices {
			name := strings.ReplaceAll(pattern, "%d", strconv.Itoa(n))
			if _, err := b.facts.Host.Stat(name); err != nil {
				break // the numbers begin at 0 and have no gaps
			}
			if !b.hasTarget(name) {
				b.bindDevice(name, name)
			}
			if name == pattern {
				break
			}
		}
	}
	for _, name := range hpcDirs {
		dir, ok := b.facts.Host.LookupEnv(name)
		if !ok || !path.IsAbs(dir) || path.Clean(dir) == "/" || path.Clean(dir) == "/tmp" {
			continue
		}
		if fi, err := b.facts.Host.Stat(dir); err != nil || !fi.IsDir() {
			continue // the launcher's own, on another node or for others than this rank
		}
		if err := b.bindSame(dir); err != nil {
			return fmt.Errorf("%s=%s: %w", name, dir, err)
		}
	}
	return nil
}

// passEnv takes the caller's variables that match the patterns.
func (b *builder) passEnv(e *environment) error {
	patterns := b.opt.EnvPass
	if b.opt.HPC {
		patterns = slices.Concat(patterns, hpcEnv)
	}
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return hint("a pattern is a name with * and ?, such as SLURM_*", "env %q in the configuration: not a pattern of variables", p)
		}
	}
	if len(patterns) == 0 {
		return nil
	}
	for _, kv := range b.facts.Host.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(p, name); return ok }) {
			e.set(name, value)
		}
	}
	if b.opt.HPC {
		for _, m := range pmixModules {
			if value, ok := b.facts.Host.LookupEnv(m[0]); ok {
				if _, set := e.index(m[1]); !set {
					e.set(m[1], value)
				}
			}
		}
	}
	return nil
}
