package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/volume"
)

// SystemCmd groups the commands on the store as a whole.
type SystemCmd struct {
	Df     DfCmd          `cmd:"" help:"Show how much room images, containers and volumes take."`
	Prune  SystemPruneCmd `cmd:"" help:"Remove what nothing needs: containers that do not run, images, volumes."`
	Events EventsCmd      `cmd:"" help:"Show what happens, as it does."`
	Info   InfoCmd        `cmd:"" help:"Show what this machine allows and what urun makes of it."`
}

// DfCmd is urun system df.
type DfCmd struct {
	Verbose bool   `short:"v" help:"Show each image, container and volume."`
	Format  string `placeholder:"json|table TEMPLATE|TEMPLATE" help:"json, or a Go template over .Type .TotalCount .Active .Size .Reclaimable."`
}

// dfRow is a line of docker system df.
type dfRow struct{ Type, TotalCount, Active, Size, Reclaimable string }

// usage is all that takes room in the store.
type usage struct {
	images     []*image.Image
	containers []*state.Record
	volumes    []*volume.Volume
	users      map[string][]string        // of volumes
	written    map[string]containerSize   // by container
	held       map[string]int64           // bytes, by volume
	imageUsers map[string][]*state.Record // by image id
	unpacked   map[string]int64           // bytes, by the chain id of the image's layers
}

func (a *App) usage() (*usage, error) {
	st, err := a.Containers()
	if err != nil {
		return nil, err
	}
	u := &usage{held: map[string]int64{}, imageUsers: map[string][]*state.Record{}}
	if u.containers, err = st.List(); err != nil {
		return nil, err
	}
	if u.images, err = a.images(); err != nil {
		return nil, err
	}
	if u.volumes, err = a.volumes().List(); err != nil {
		return nil, err
	}
	if u.users, err = a.volumeUsers(); err != nil {
		return nil, err
	}
	if u.written, err = a.containerSizes(st, u.containers); err != nil {
		return nil, err
	}
	for _, v := range u.volumes {
		if u.held[v.Name], err = a.volumeSize(v); err != nil {
			return nil, err
		}
	}
	if u.unpacked, err = a.unpackedSizes(); err != nil {
		return nil, err
	}
	for _, rec := range u.containers {
		u.imageUsers[rec.ImageID] = append(u.imageUsers[rec.ImageID], rec)
	}
	return u, nil
}

// Run prints sums, or everything.
func (c *DfCmd) Run(app *App) error {
	u, err := app.usage()
	if err != nil {
		return err
	}
	if c.Verbose && c.Format == "" {
		return u.verbose(app)
	}
	format := c.Format
	if format == "" || format == "table" {
		format = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
	}
	headings := dfRow{"TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"}
	return printFormat(app.Stdout, format, headings, []dfRow{u.imageRow(), u.containerRow(), u.volumeRow()})
}

// reclaimable is how docker writes what would be free, and how much of all that is.
func reclaimable(free, all int64) string {
	if all == 0 {
		return humanSize(free)
	}
	return fmt.Sprintf("%s (%d%%)", humanSize(free), free*100/all)
}

func (u *usage) imageRow() dfRow {
	active := 0
	size, free := u.layerBytes(func(*image.Image) bool { return true }), int64(0)
	for _, img := range u.images {
		if len(u.imageUsers[img.ID.String()]) > 0 {
			active++
		}
	}
	needed := u.layerBytes(func(img *image.Image) bool { return len(u.imageUsers[img.ID.String()]) > 0 })
	free = size - needed
	return dfRow{"Images", fmt.Sprint(len(u.images)), fmt.Sprint(active), humanSize(size), reclaimable(free, size)}
}

// layerBytes adds up the layers of the images that are chosen, and what of them is unpacked, each once.
func (u *usage) layerBytes(choose func(*image.Image) bool) (size int64) {
	seen := map[string]bool{}
	for _, img := range u.images {
		if !choose(img) {
			continue
		}
		for _, l := range img.Layers {
			if key := l.DiffID.String(); !seen[key] {
				seen[key] = true
				size += l.Size
			}
		}
		if chain := img.ChainID.Encoded(); !seen[chain] {
			seen[chain] = true
			size += u.unpacked[chain]
		}
	}
	return size
}

func (u *usage) containerRow() dfRow {
	active, size, free := 0, int64(0), int64(0)
	for _, rec := range u.containers {
		n := u.written[rec.ID].Written
		size += n
		if isUp(rec) {
			active++
		} else {
			free += n
		}
	}
	return dfRow{"Containers", fmt.Sprint(len(u.containers)), fmt.Sprint(active), humanSize(size), reclaimable(free, size)}
}

func (u *usage) volumeRow() dfRow {
	active, size, free := 0, int64(0), int64(0)
	for _, v := range u.volumes {
		size += u.held[v.Name]
		if len(u.users[v.Name]) > 0 {
			active++
		} else {
			free += u.held[v.Name]
		}
	}
	return dfRow{"Local Volumes", fmt.Sprint(len(u.volumes)), fmt.Sprint(active), humanSize(size), reclaimable(free, size)}
}

// verbose lists everything, as docker does with -v.
func (u *usage) verbose(app *App) error {
	type imageLine struct{ Repository, Tag, ID, Created, Size, Shared, Unique, Containers string }
	type volumeLine struct{ Name, Links, Size string }
	type containerLine struct{ ID, Image, Command, Volumes, Size, Created, Status, Names string }
	var images []imageLine
	for _, img := range u.images {
		unique := u.layerBytes(func(*image.Image) bool { return true }) - u.layerBytes(func(o *image.Image) bool { return o != img })
		for _, row := range (&ImagesCmd{}).rows(img) {
			images = append(images, imageLine{
				row.Repository, row.Tag, row.ID, row.CreatedSince, humanSize(img.Size),
				humanSize(img.Size - unique), humanSize(unique), fmt.Sprint(len(u.imageUsers[img.ID.String()])),
			})
		}
	}
	slices.SortFunc(images, func(a, b imageLine) int {
		return cmp.Or(strings.Compare(a.Repository, b.Repository), strings.Compare(a.Tag, b.Tag))
	})
	var containers []containerLine
	for _, rec := range u.containers {
		containers = append(containers, containerLine{
			rec.ID[:12], rec.Image, fmt.Sprintf("%q", shorten(strings.Join(rec.Command, " "), 20)), fmt.Sprint(len(volumesOf(rec))),
			humanSize(u.written[rec.ID].Written), ago(rec.Created), statusText(rec), rec.Name,
		})
	}
	var volumes []volumeLine
	for _, v := range u.volumes {
		volumes = append(volumes, volumeLine{v.Name, fmt.Sprint(len(u.users[v.Name])), humanSize(u.held[v.Name])})
	}
	w := app.Stdout
	fmt.Fprint(w, "Images space usage:\n\n")
	err := printFormat(w, "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.Created}}\t{{.Size}}\t{{.Shared}}\t{{.Unique}}\t{{.Containers}}",
		imageLine{"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"}, images)
	fmt.Fprint(w, "\nContainers space usage:\n\n")
	err = errors.Join(err, printFormat(w, "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.Volumes}}\t{{.Size}}\t{{.Created}}\t{{.Status}}\t{{.Names}}",
		containerLine{"CONTAINER ID", "IMAGE", "COMMAND", "LOCAL VOLUMES", "SIZE", "CREATED", "STATUS", "NAMES"}, containers))
	fmt.Fprint(w, "\nLocal Volumes space usage:\n\n")
	return errors.Join(err, printFormat(w, "table {{.Name}}\t{{.Links}}\t{{.Size}}", volumeLine{"VOLUME NAME", "LINKS", "SIZE"}, volumes))
}

// SystemPruneCmd removes what nothing needs.
type SystemPruneCmd struct {
	All     bool     `short:"a" help:"Remove every image that no container uses, not only those without a name."`
	Force   bool     `short:"f" help:"Accepted for scripts written for docker: urun does not ask."`
	Volumes bool     `help:"Remove anonymous volumes that no container has as well."`
	Filter  []string `sep:"none" placeholder:"KEY=VALUE" help:"Only things with this label[=value], without one (label!=...), or until=TIME."`
}

// Run removes containers first: they keep images and volumes.
func (c *SystemPruneCmd) Run(app *App) error {
	ofContainers, err := parseFilters(c.Filter, pruneContainerFilters())
	if err != nil {
		return err
	}
	ofVolumes, err := parseFilters(c.Filter, pruneVolumeFilters())
	if err != nil {
		return err
	}
	ofImages, err := parseFilters(c.Filter, pruneImageFilters())
	if err != nil {
		return err
	}
	p := &pruned{app: app}
	errs := []error{p.containers(ofContainers)}
	if c.Volumes {
		errs = append(errs, p.volumes(false, ofVolumes))
	}
	return errors.Join(append(errs, p.images(c.All, ofImages), p.total())...)
}

func pruneImageFilters() filterKeys[*image.Image] {
	labels := func(img *image.Image) map[string]string { return img.Config.Config.Labels }
	return filterKeys[*image.Image]{
		"label": labelFilter(labels), "label!": noLabelFilter(labels),
		"until": untilFilter(func(img *image.Image) time.Time { return img.Created }),
	}
}
