package batch

import "testing"

func of(env map[string]string) Lookup { return func(name string) string { return env[name] } }

func TestAJobIsKnownByItsVariable(t *testing.T) {
	if job, ok := Of(of(nil)); ok {
		t.Errorf("an empty environment is of job %v", job)
	}
	for _, name := range Variables() {
		job, ok := Of(of(map[string]string{name: "7", "SGE_TASK_ID": "undefined"}))
		if !ok || job.ID != "7" || job.Variable != name || job.System == "" {
			t.Errorf("%s=7: got %+v, %v", name, job, ok)
		}
	}
}

// CI systems number their jobs as well.
func TestAJobOfSomethingElse(t *testing.T) {
	if job, ok := Of(of(map[string]string{"JOB_ID": "7"})); ok {
		t.Errorf("JOB_ID alone is of job %v", job)
	}
}

func TestRanksOfANode(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want int
	}{
		{nil, 0},
		{map[string]string{"OMPI_COMM_WORLD_LOCAL_SIZE": "16"}, 16},
		{map[string]string{"SLURM_STEP_TASKS_PER_NODE": "8"}, 8},
		{map[string]string{"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "2"}, 2},
		{map[string]string{"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3"}, 1},
		{map[string]string{"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "4"}, 0},
		{map[string]string{"SLURM_STEP_TASKS_PER_NODE": "many"}, 0},
		{map[string]string{"SLURM_STEP_TASKS_PER_NODE": "4(x"}, 0},
	} {
		if got := LocalRanks(of(c.env)); got != c.want {
			t.Errorf("%v: got %d, want %d", c.env, got, c.want)
		}
	}
}

func TestAGroupIsOneStepOfAJob(t *testing.T) {
	step := func(id string) string {
		return Group(of(map[string]string{"SLURM_JOB_ID": "5", "SLURM_STEP_ID": id}))
	}
	if step("0") == "" || step("0") == step("1") {
		t.Errorf("steps 0 and 1 are %q and %q", step("0"), step("1"))
	}
	// A batch script is in a job and in no step.
	if g := Group(of(map[string]string{"SLURM_JOB_ID": "5"})); g != "" {
		t.Errorf("a job without a step is group %q", g)
	}
}
