package main

import "github.com/urun-dev/urun/internal/spec"

// LifeFlags say how a container is watched, restarted and logged.
type LifeFlags struct {
	Restart string `placeholder:"POLICY" group:"Life" help:"When it ends: no, on-failure[:N], always or unless-stopped."`

	HealthCmd           *string `placeholder:"COMMAND" group:"Life" help:"Shell command that tells by its exit status whether the container is healthy."`
	HealthInterval      string  `placeholder:"TIME" group:"Life" help:"Time between two checks (30s)."`
	HealthTimeout       string  `placeholder:"TIME" group:"Life" help:"Time after which a check has failed (30s)."`
	HealthRetries       *int    `placeholder:"N" group:"Life" help:"Failures in a row that make it unhealthy (3)."`
	HealthStartPeriod   string  `placeholder:"TIME" group:"Life" help:"Time to come up in, in which failures do not count."`
	HealthStartInterval string  `placeholder:"TIME" group:"Life" help:"Time between checks while it comes up (5s)."`
	NoHealthcheck       bool    `group:"Life" help:"Do not run the image's check."`

	LogDriver string   `placeholder:"KIND" group:"Life" help:"What becomes of the output: json-file or none."`
	LogOpt    []string `sep:"none" placeholder:"KEY=VALUE" group:"Life" help:"max-size=SIZE of a log file, max-file=N files."`
}

func (f *LifeFlags) options() spec.LifeOptions {
	return spec.LifeOptions{
		Restart: f.Restart, HealthCmd: f.HealthCmd, HealthInterval: f.HealthInterval, HealthTimeout: f.HealthTimeout,
		HealthStartPeriod: f.HealthStartPeriod, HealthStartInterval: f.HealthStartInterval, HealthRetries: f.HealthRetries,
		NoHealthcheck: f.NoHealthcheck, LogDriver: f.LogDriver, LogOpts: f.LogOpt,
	}
}
