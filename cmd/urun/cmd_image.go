package main

// ImageCmd groups the image commands under docker's second names, and those that have no first one.
type ImageCmd struct {
	Inspect ImageInspectCmd `cmd:"" help:"Show all that is known of images, as JSON."`
	Prune   ImagePruneCmd   `cmd:"" help:"Remove images that nothing needs."`
	Ls      ImagesCmd       `cmd:"" aliases:"list" help:"List images."`
	Pull    PullCmd         `cmd:"" help:"Bring an image into the store."`
	Rm      RmiCmd          `cmd:"" aliases:"remove" help:"Remove images."`
	Tag     TagCmd          `cmd:"" help:"Give an image another name."`
	Load    LoadCmd         `cmd:"" help:"Load images from an archive."`
	Save    SaveCmd         `cmd:"" help:"Save images to an archive."`
	Import  ImportCmd       `cmd:"" help:"Make an image of a root filesystem's tar."`
	Mount   ImageMountCmd   `cmd:"" help:"Show the files of an image on a directory."`
	Umount  ImageUmountCmd  `cmd:"" aliases:"unmount" help:"Unmount images."`
	Verify  ImageVerifyCmd  `cmd:"" help:"Check that images are what they were when they were pulled."`
	Tree    ImageTreeCmd    `cmd:"" help:"List the files of an image."`
	Diff    ImageDiffCmd    `cmd:"" help:"Compare the files of two images."`
}

// ImageInspectCmd shows images.
type ImageInspectCmd struct {
	Format string   `short:"f" placeholder:"TEMPLATE" help:"Go template for each image, instead of JSON."`
	Images []string `arg:"" name:"image" help:"Names or ids."`
}

// Run prints the images that there are and tells of those that there are not.
func (c *ImageInspectCmd) Run(app *App) error {
	return (&InspectCmd{Format: c.Format, Type: "image", Names: c.Images}).Run(app)
}

func (a *App) inspectImage(ref string) (any, error) {
	store, err := a.Store()
	if err != nil {
		return nil, err
	}
	img, err := store.Inspect(ref)
	if err != nil {
		return nil, err
	}
	return img.Details()
}

// ImagePruneCmd removes what nothing needs.
type ImagePruneCmd struct {
	All    bool     `short:"a" help:"Remove every image that no container uses, not only those without a name."`
	Force  bool     `short:"f" help:"Accepted for scripts written for docker: urun does not ask."`
	Filter []string `sep:"none" placeholder:"KEY=VALUE" help:"Only images with this label[=value], without one (label!=...), or made before until=TIME."`
}

// Run says what went and how much room it gave.
func (c *ImagePruneCmd) Run(app *App) error {
	keep, err := parseFilters(c.Filter, pruneImageFilters())
	if err != nil {
		return err
	}
	p := &pruned{app: app}
	if err := p.images(c.All, keep); err != nil {
		return err
	}
	return p.total()
}
