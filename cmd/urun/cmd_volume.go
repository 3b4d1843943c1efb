package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/volume"
)

// VolumeCmd groups the commands on volumes.
type VolumeCmd struct {
	Create  VolumeCreateCmd  `cmd:"" help:"Make a volume."`
	Ls      VolumeLsCmd      `cmd:"" aliases:"list" help:"List volumes."`
	Inspect VolumeInspectCmd `cmd:"" help:"Show all that is known of volumes, as JSON."`
	Rm      VolumeRmCmd      `cmd:"" aliases:"remove" help:"Remove volumes that no container has."`
	Prune   VolumePruneCmd   `cmd:"" help:"Remove the volumes that no container has."`
}

// volumes opens the store of volumes, which is that of the containers.
func (a *App) volumes() *volume.Store { return volume.Open(a.stateRoot()) }

// volumeUsers tells which containers have which volume.
func (a *App) volumeUsers() (map[string][]string, error) {
	st, err := state.Open(a.stateRoot())
	if err != nil {
		return nil, err
	}
	all, err := st.List()
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, rec := range all {
		for _, name := range volumesOf(rec) {
			users[name] = append(users[name], rec.Name)
		}
	}
	return users, nil
}

// volumesOf names a container's volumes.
func volumesOf(rec *state.Record) []string {
	names := slices.Clone(rec.NamedVolumes)
	for _, dir := range rec.Volumes {
		names = append(names, filepath.Base(dir))
	}
	return names
}

// removeVolumeFiles deletes what volumes held.
func removeVolumeFiles(dirs []string) error {
	m, err := ownMap()
	if err != nil {
		return err
	}
	return monitor.RemoveOwned(executable(), m, dirs)
}

// VolumeCreateCmd makes a volume.
type VolumeCreateCmd struct {
	Driver string   `short:"d" default:"local" placeholder:"local" help:"There is one kind of volume: local."`
	Label  []string `short:"l" sep:"none" placeholder:"KEY=VALUE" help:"Label of the volume."`
	Ignore bool     `help:"Do not mind a volume of this name that is there already."`
	Name   string   `arg:"" optional:"" name:"volume" help:"Its name; without, it gets one of 64 digits."`
}

// Run prints the name of the volume.
func (c *VolumeCreateCmd) Run(app *App) error {
	if c.Driver != "local" {
		return &hintError{fmt.Errorf("volume create: no driver %q", c.Driver), "volumes are directories of the store: leave --driver out"}
	}
	v := volume.Volume{Name: c.Name, Labels: map[string]string{}, Created: time.Now()}
	for _, l := range c.Label {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return fmt.Errorf("--label %q: want KEY=VALUE", l)
		}
		v.Labels[key] = value
	}
	if v.Name == "" {
		v.Name, v.Anonymous = state.NewID(), true
	}
	if err := volume.CheckName(v.Name); err != nil {
		return err
	}
	st := app.volumes()
	release, err := st.Hold()
	if err != nil {
		return err
	}
	defer release()
	// As with docker, one that is there is no error.
	made, err := st.Make(v)
	if err != nil {
		return err
	}
	if made {
		app.tell(volumeEvent("create", v.Name))
	}
	_, err = fmt.Fprintln(app.Stdout, v.Name)
	return err
}

// volumeFilters are the keys for volumes.
func volumeFilters(users map[string][]string) filterKeys[*volume.Volume] {
	labels := func(v *volume.Volume) map[string]string { return v.Labels }
	return filterKeys[*volume.Volume]{
		"name": func(value string) (func(*volume.Volume) bool, error) {
			return func(v *volume.Volume) bool { return strings.Contains(v.Name, value) }, nil
		},
		"dangling":  boolFilter(func(v *volume.Volume) bool { return len(users[v.Name]) == 0 }),
		"anonymous": boolFilter(func(v *volume.Volume) bool { return v.Anonymous }),
		"driver":    wordFilter([]string{"local"}, func(*volume.Volume) string { return "local" }),
		"label":     labelFilter(labels),
		"label!":    noLabelFilter(labels),
		"until":     untilFilter(func(v *volume.Volume) time.Time { return v.Created }),
	}
}

// VolumeLsCmd lists volumes.
type VolumeLsCmd struct {
	Quiet  bool     `short:"q" help:"Print names only."`
	Format string   `placeholder:"json|table TEMPLATE|TEMPLATE" help:"json, or a Go template over .Name .Driver .Mountpoint .Scope .Labels .Label .CreatedAt .Links."`
	Filter []string `short:"f" sep:"none" placeholder:"KEY=VALUE" help:"Only volumes with this name, label[=value], dangling=true|false, anonymous=true|false or until=TIME."`
}

// volumeRow is a volume as docker volume ls shows it.
type volumeRow struct {
	Name, Driver, Mountpoint, Scope, Labels, CreatedAt, Links string

	labels map[string]string
}

// Label is the value of one label, for templates.
func (r volumeRow) Label(key string) string { return r.labels[key] }

// Run prints the list.
func (c *VolumeLsCmd) Run(app *App) error {
	users, err := app.volumeUsers()
	if err != nil {
		return err
	}
	keep, err := parseFilters(c.Filter, volumeFilters(users))
	if err != nil {
		return err
	}
	all, err := app.volumes().List()
	if err != nil {
		return err
	}
	var rows []volumeRow
	for _, v := range all {
		if !keep.match(v) {
			continue
		}
		rows = append(rows, volumeRow{
			Name: v.Name, Driver: "local", Mountpoint: v.Path, Scope: "local", Labels: labelText(v.Labels),
			CreatedAt: v.Created.Local().Format(time.RFC3339), Links: fmt.Sprint(len(users[v.Name])), labels: v.Labels,
		})
	}
	format := c.Format
	switch {
	case format == "" && c.Quiet:
		format = "{{.Name}}"
	case format == "" || format == "table":
		format = "table {{.Driver}}\t{{.Name}}"
	}
	return printFormat(app.Stdout, format, volumeRow{
		Name: "VOLUME NAME", Driver: "DRIVER", Mountpoint: "MOUNTPOINT", Scope: "SCOPE", Labels: "LABELS",
		CreatedAt: "CREATED AT", Links: "LINKS",
	}, rows)
}

// inspectedVolume is a volume as docker volume inspect shows it.
type inspectedVolume struct {
	CreatedAt  time.Time
	Driver     string
	Labels     map[string]string
	Mountpoint string
	Name       string
	Options    map[string]string
	Scope      string
	Anonymous  bool     `json:",omitempty"`
	UsedBy     []string // containers
}

func (a *App) inspectVolume(name string) (any, error) {
	v, err := a.volumes().Find(name)
	if err != nil {
		return nil, err
	}
	users, err := a.volumeUsers()
	if err != nil {
		return nil, err
	}
	i := &inspectedVolume{
		CreatedAt: v.Created, Driver: "local", Labels: v.Labels, Mountpoint: v.Path, Name: v.Name,
		Options: map[string]string{}, Scope: "local", Anonymous: v.Anonymous, UsedBy: users[v.Name],
	}
	if i.Labels == nil {
		i.Labels = map[string]string{}
	}
	if i.UsedBy == nil {
		i.UsedBy = []string{}
	}
	return i, nil
}

// VolumeInspectCmd shows volumes.
type VolumeInspectCmd struct {
	Format  string   `short:"f" placeholder:"json|TEMPLATE" help:"A Go template for each, instead of JSON."`
	Volumes []string `arg:"" name:"volume"`
}

// Run prints the volumes that there are and tells of those that there are not.
func (c *VolumeInspectCmd) Run(app *App) error {
	return (&InspectCmd{Format: c.Format, Type: "volume", Names: c.Volumes}).Run(app)
}

// VolumeRmCmd removes volumes.
type VolumeRmCmd struct {
	Force   bool     `short:"f" help:"Do not mind volumes that do not exist."`
	All     bool     `short:"a" help:"All volumes that no container has."`
	Volumes []string `arg:"" optional:"" name:"volume"`
}

// Run removes what can be removed and tells of the rest.
func (c *VolumeRmCmd) Run(app *App) error {
	if c.All == (len(c.Volumes) > 0) {
		return &hintError{errors.New("volume rm: name volumes, or say --all"), "urun volume ls lists volumes"}
	}
	gone, err := app.removeVolumes(func(v *volume.Volume) bool { return c.All || slices.Contains(c.Volumes, v.Name) })
	for _, v := range gone {
		fmt.Fprintln(app.Stdout, v.Name)
	}
	if err != nil {
		return err
	}
	users, err := app.volumeUsers()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range c.Volumes {
		if slices.ContainsFunc(gone, func(v *volume.Volume) bool { return v.Name == name }) {
			continue
		}
		_, err := app.volumes().Find(name)
		switch {
		case err == nil:
			err = fmt.Errorf("%w: %s by %s", volume.ErrInUse, name, strings.Join(users[name], ", "))
		case c.Force && errors.Is(err, volume.ErrNotFound):
			err = nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (a *App) removeVolumes(choose func(*volume.Volume) bool) ([]*volume.Volume, error) {
	gone, err := a.volumes().Remove(a.volumeUsers, choose, removeVolumeFiles)
	for _, v := range gone {
		a.tell(volumeEvent("destroy", v.Name))
	}
	return gone, err
}

// VolumePruneCmd removes volumes that nobody has.
type VolumePruneCmd struct {
	All    bool     `short:"a" help:"Named volumes as well, not only anonymous ones."`
	Force  bool     `short:"f" help:"Accepted for scripts written for docker: urun does not ask."`
	Filter []string `sep:"none" placeholder:"KEY=VALUE" help:"Only volumes with this label[=value], without one (label!=...), or until=TIME."`
}

// Run says what went and how much room it gave.
func (c *VolumePruneCmd) Run(app *App) error {
	keep, err := parseFilters(c.Filter, pruneVolumeFilters())
	if err != nil {
		return err
	}
	p := &pruned{app: app}
	return errors.Join(p.volumes(c.All, keep), p.total())
}

func pruneVolumeFilters() filterKeys[*volume.Volume] {
	keys := volumeFilters(nil)
	for _, k := range []string{"name", "dangling", "driver", "anonymous"} {
		delete(keys, k)
	}
	return keys
}
