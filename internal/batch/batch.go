package batch

import (
	"strconv"
	"strings"
)

// A system is a batch system, the variable in which it names the job, and one without which that is not meant.
type system struct{ name, variable, beside string }

var systems = []system{
	{"Slurm", "SLURM_JOB_ID", ""},
	{"PBS", "PBS_JOBID", ""}, // and Torque
	{"LSF", "LSB_JOBID", ""},
	{"Grid Engine", "JOB_ID", "SGE_TASK_ID"}, // others number jobs in JOB_ID, too; tasks have "undefined" where there is one
	{"Flux", "FLUX_JOB_ID", ""},
	{"OAR", "OAR_JOB_ID", ""},
	{"HTCondor", "_CONDOR_SLOT", ""},
}

// A Lookup gives the value of an environment variable, "" where it is not set:
// os.Getenv.
type Lookup func(name string) string

// Variables are those that name the job, of all batch systems.
func Variables() []string {
	all := make([]string, len(systems))
	for i, s := range systems {
		all[i] = s.variable
	}
	return all
}

// Job is the job that a process belongs to.
type Job struct {
	System   string // the batch system's name
	Variable string // where it named the job
	ID       string
}

// Of returns the job of a process with that environment; ok is false outside of jobs.
func Of(env Lookup) (job Job, ok bool) {
	for _, s := range systems {
		if id := env(s.variable); id != "" && (s.beside == "" || env(s.beside) != "") {
			return Job{System: s.name, Variable: s.variable, ID: id}, true
		}
	}
	return Job{}, false
}

// Group is a name for the ranks that one launcher started on this node: the same for
// all of them, another one for any other job step. It is "" where no launcher is known.
func Group(env Lookup) string {
	for _, names := range [][]string{
		{"SLURM_JOB_ID", "SLURM_STEP_ID"},
		{"PMIX_NAMESPACE"},          // Open MPI 5, PRRTE, Slurm's pmix
		{"OMPI_MCA_ess_base_jobid"}, // Open MPI before 5
		{"FLUX_JOB_ID"},
		{"PALS_APID"}, // HPE's launcher
		{"PMI_JOBID"},
	} {
		var values []string
		for _, name := range names {
			if v := env(name); v != "" {
				values = append(values, v)
			}
		}
		if len(values) == len(names) {
			return strings.Join(values, ".")
		}
	}
	return ""
}

// LocalRanks is how many ranks the launcher starts on this node; 0: not known.
func LocalRanks(env Lookup) int {
	for _, name := range []string{"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PALS_LOCAL_SIZE"} {
		if n, err := strconv.Atoi(env(name)); err == nil && n > 0 {
			return n
		}
	}
	node, err := strconv.Atoi(env("SLURM_NODEID"))
	if err != nil {
		node = 0
	}
	return nth(env("SLURM_STEP_TASKS_PER_NODE"), node)
}

// nth reads the list that Slurm writes as "2(x3),1": two on each of three nodes, one on
// the next. It is 0 for what is no such list, and beyond its end.
func nth(list string, node int) int {
	for _, item := range strings.Split(list, ",") {
		count, rest, repeated := strings.Cut(item, "(x")
		n, err := strconv.Atoi(count)
		if err != nil || n < 0 {
			return 0
		}
		times := 1
		if repeated {
			if times, err = strconv.Atoi(strings.TrimSuffix(rest, ")")); err != nil || times < 1 {
				return 0
			}
		}
		if node < times {
			return n
		}
		node -= times
	}
	return 0
}
