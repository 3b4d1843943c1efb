package holder

import (
	"os"
	"time"
)

// DefaultLinger is how long a holder stays after its last container where
// nobody says otherwise.
const DefaultLinger = 5 * time.Minute

// batchJobs are the variables in which batch systems name the job: Slurm,
// PBS and Torque, LSF, Grid Engine, Flux, OAR, HTCondor.
var batchJobs = []string{
	"SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "FLUX_JOB_ID", "OAR_JOB_ID", "_CONDOR_SLOT",
}

// Linger is the time for this process: none in a batch job, which has to end
// when its commands do.
func Linger() time.Duration {
	for _, name := range batchJobs {
		if os.Getenv(name) != "" {
			return 0
		}
	}
	return DefaultLinger
}
