package main

// TagCmd names an image.
type TagCmd struct {
	Source string   `arg:"" help:"Name or id of an image."`
	Target []string `arg:"" help:"New names."`
}

// Run gives the names.
func (c *TagCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	for _, name := range c.Target {
		if err := store.Tag(ctx, c.Source, name); err != nil {
			return err
		}
		app.tell(imageEvent("tag", c.Source, name))
	}
	return nil
}
