package main

import (
	"cmp"
	"fmt"
	"os"

	"github.com/urun-dev/urun/internal/batch"
	"github.com/urun-dev/urun/internal/settings"
	"github.com/urun-dev/urun/internal/spec"
)

// manners are what holds for a container where no flag says otherwise: the
// configuration files', and within a batch job those of a guest on a shared machine.
type manners struct {
	settings.Settings
	job   batch.Job
	inJob bool
}

func readManners() (manners, error) {
	s, err := settings.Load(settings.Files())
	if err != nil {
		return manners{}, err
	}
	m := manners{Settings: s}
	m.job, m.inJob = batch.Of(os.Getenv)
	if m.inJob && m.UserNS.From == "" {
		m.UserNS = settings.Value[string]{Value: "keep-id", From: m.job.Variable}
	}
	return m, nil
}

// manners fills in what the flags leave open.
func (a *App) manners(f *HPCFlags, o *spec.Options) error {
	m, err := readManners()
	if err != nil {
		return err
	}
	for _, b := range m.Bind {
		o.SiteBinds = append(o.SiteBinds, b.Value)
	}
	for _, e := range m.Env {
		o.EnvPass = append(o.EnvPass, e.Value)
	}
	if f.Home == nil {
		o.Home = m.Home.Value
	}
	if f.HPC == nil {
		o.HPC = m.HPC.Value
	}
	o.Storage = cmp.Or(o.Storage, m.Storage.Value)
	o.Writable = cmp.Or(o.Writable, m.Writable.Value)
	if len(o.Publish) == 0 && !o.PublishAll {
		o.Network = cmp.Or(o.Network, m.Network.Value)
	}
	// Who names a user means one of the image; who shares another's namespaces has its map.
	if o.UserNS == "" && o.User == "" && sharedContainer(*o, spec.UserNS{}) == "" && m.UserNS.Value != "" {
		o.UserNS = m.UserNS.Value
		if m.inJob && len(o.GroupAdd) == 0 {
			o.GroupAdd = []string{"keep-groups"} // what a project shares belongs to a group
		}
	}
	if m.inJob && o.Detach && !o.Quiet {
		fmt.Fprintf(a.Stderr, "urun: this is job %s of %s: a container in the background ends with the job, or is in its way\n", m.job.ID, m.job.System)
	}
	return nil
}

// showManners shows, for urun info, what is in effect and from where.
func showManners(row func(key string, value any)) {
	m, err := readManners()
	if err != nil {
		row("configuration", err)
		return
	}
	if m.inJob {
		row("batch job", fmt.Sprintf("%s of %s (%s): nothing stays after the last container", m.job.ID, m.job.System, m.job.Variable))
	} else {
		row("batch job", "none")
	}
	for _, name := range settings.Files() {
		if _, err := os.Stat(name); err != nil {
			name += " (" + cause(err).Error() + ")"
		}
		row("configuration", name)
	}
	show := func(key, value, from string) {
		if from != "" {
			row("", fmt.Sprintf("%s = %s, from %s", key, value, from))
		}
	}
	for _, b := range m.Bind {
		show("bind", b.Value, b.From)
	}
	for _, e := range m.Env {
		show("env", e.Value, e.From)
	}
	show("home", fmt.Sprint(m.Home.Value), m.Home.From)
	show("hpc", fmt.Sprint(m.HPC.Value), m.HPC.From)
	show("userns", m.UserNS.Value, m.UserNS.From)
	show("storage", m.Storage.Value, m.Storage.From)
	show("writable", m.Writable.Value, m.Writable.From)
	show("network", m.Network.Value, m.Network.From)
}

// cause is an error without the operation and the path.
func cause(err error) error {
	for {
		inner, ok := err.(interface{ Unwrap() error })
		if !ok || inner.Unwrap() == nil {
			return err
		}
		err = inner.Unwrap()
	}
}
