package main

import (
	"github.com/urun-dev/urun/internal/state"
)

// ContainerCmd groups the commands on containers under docker's second names.
type ContainerCmd struct {
	Run     RunCmd              `cmd:"" help:"Run a command in a new container."`
	Create  CreateCmd           `cmd:"" help:"Make a container without starting it."`
	Start   StartCmd            `cmd:"" help:"Start containers that were made or have ended."`
	Restart RestartCmd          `cmd:"" help:"Stop containers and start them again."`
	Exec    ExecCmd             `cmd:"" help:"Run a command in a running container."`
	Attach  AttachCmd           `cmd:"" help:"Connect to a running container's output and input."`
	Rename  RenameCmd           `cmd:"" help:"Give a container another name."`
	Ls      PsCmd               `cmd:"" aliases:"list,ps" help:"List containers."`
	Stop    StopCmd             `cmd:"" help:"Stop containers: a signal, then SIGKILL."`
	Kill    KillCmd             `cmd:"" help:"Send a signal to containers."`
	Pause   PauseCmd            `cmd:"" help:"Stop all processes of containers where they are."`
	Unpause UnpauseCmd          `cmd:"" help:"Let the processes of paused containers go on."`
	Update  UpdateCmd           `cmd:"" help:"Change limits of containers."`
	Stats   StatsCmd            `cmd:"" help:"Show what containers use of the machine, as it changes."`
	Rm      RmCmd               `cmd:"" aliases:"remove" help:"Remove containers."`
	Logs    LogsCmd             `cmd:"" help:"Show the output of a detached container."`
	Wait    WaitCmd             `cmd:"" help:"Wait until containers end and print their exit status."`
	Port    PortCmd             `cmd:"" help:"List a container's published ports."`
	Top     TopCmd              `cmd:"" help:"List the processes of a container."`
	Cp      CpCmd               `cmd:"" help:"Copy files between a container and the host."`
	Diff    DiffCmd             `cmd:"" help:"List what a container changed of its image."`
	Commit  CommitCmd           `cmd:"" help:"Make an image of a container and what it has changed."`
	Export  ExportCmd           `cmd:"" help:"Write a container's file system as a tar."`
	Inspect ContainerInspectCmd `cmd:"" help:"Show all that is known of containers, as JSON."`
	Prune   ContainerPruneCmd   `cmd:"" help:"Remove the containers that do not run."`
}

// ContainerInspectCmd is inspect of containers alone.
type ContainerInspectCmd struct {
	Format     string   `short:"f" placeholder:"json|TEMPLATE" help:"A Go template for each, instead of JSON."`
	Size       bool     `short:"s" help:"Tell how much containers have written."`
	Containers []string `arg:"" name:"container"`
}

// Run prints the containers that there are and tells of those that there are not.
func (c *ContainerInspectCmd) Run(app *App) error {
	return (&InspectCmd{Format: c.Format, Size: c.Size, Type: "container", Names: c.Containers}).Run(app)
}

// ContainerPruneCmd removes containers that do not run.
type ContainerPruneCmd struct {
	Force  bool     `short:"f" help:"Accepted for scripts written for docker: urun does not ask."`
	Filter []string `sep:"none" placeholder:"KEY=VALUE" help:"Only containers with this label[=value], without one (label!=...), or until=TIME."`
}

// Run says what went and how much room it gave.
func (c *ContainerPruneCmd) Run(app *App) error {
	keep, err := parseFilters(c.Filter, pruneContainerFilters())
	if err != nil {
		return err
	}
	p := &pruned{app: app}
	if err := p.containers(keep); err != nil {
		return err
	}
	return p.total()
}

func pruneContainerFilters() filterKeys[*state.Record] {
	labels := func(rec *state.Record) map[string]string { return rec.Labels }
	return filterKeys[*state.Record]{
		"label": labelFilter(labels), "label!": noLabelFilter(labels), "until": untilFilter(createdAt),
	}
}
