package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/urun-dev/urun/internal/archive"
)

// CpCmd is urun cp.
type CpCmd struct {
	Archive    bool   `short:"a" help:"Keep owners: your own files become yours inside, too. Without, files belong to root inside."`
	FollowLink bool   `short:"L" help:"Copy what a symbolic link at SRC leads to."`
	Quiet      bool   `short:"q" help:"Accepted for scripts written for docker: urun says nothing anyway."`
	Src        string `arg:"" name:"src" help:"CONTAINER:PATH, a path, or - for a tar stream on standard input. What ends in /. is the content of a directory."`
	Dst        string `arg:"" name:"dst" help:"CONTAINER:PATH, a path, or - for a tar stream on standard output."`
}

// tree is one side of a copy.
type tree interface {
	Stat(path string, follow bool) (archive.Info, error)
	Write(w io.Writer, path string, opt archive.WriteOptions) error
	Extract(r io.Reader, dir string, opt archive.ExtractOptions) error
	Close() error
}

// place is a path of one side.
type place struct {
	tree
	path   string // absolute; a slash or /. at its end is kept
	shown  string // as the user wrote it
	inside *containerFiles
}

// Run copies between a container and the host, or between two containers.
func (c *CpCmd) Run(app *App) (err error) {
	if c.Src == "-" && c.Dst == "-" {
		return errors.New("cp: only one of the two can be -")
	}
	src, err := app.place(c.Src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	dst, err := app.place(c.Dst)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.close()) }()
	if src.inside == nil && dst.inside == nil {
		return &hintError{errors.New("cp: neither of the two is in a container"), "write CONTAINER:PATH for a path in a container"}
	}
	if dst.inside != nil && dst.inside.memory {
		return &hintError{fmt.Errorf("cp: container %s: %w", dst.inside.rec.Name, errInMemory), "start it first: urun start " + dst.inside.rec.Name}
	}
	switch {
	case c.Src == "-":
		err = c.unpack(app, dst)
	case c.Dst == "-":
		err = c.pack(app, src)
	default:
		err = c.copy(src, dst)
	}
	if err != nil {
		return fmt.Errorf("cp: %w", err)
	}
	if src.inside != nil {
		app.tell(containerEvent("archive-path", src.inside.rec))
	}
	if dst.inside != nil {
		app.tell(containerEvent("extract-to-dir", dst.inside.rec))
	}
	return nil
}

// place opens what an argument names. A container's name has no slash and does
// not begin with a dot: ./a:b is a path.
func (a *App) place(arg string) (*place, error) {
	name, inside, ok := strings.Cut(arg, ":")
	switch {
	case arg == "-":
		return &place{shown: arg}, nil
	case arg == "":
		return nil, errors.New("cp: a path is empty")
	case ok && name != "" && !strings.Contains(name, "/") && !strings.HasPrefix(name, "."):
		c, err := a.openFiles(name)
		if err != nil {
			return nil, err
		}
		if inside == "" {
			return nil, errors.Join(fmt.Errorf("cp: %s: name a path in the container", arg), c.Close())
		}
		return &place{tree: c, path: keepEnd(inside, path.Join("/", inside)), shown: arg, inside: c}, nil
	}
	abs, err := filepath.Abs(arg)
	if err != nil {
		return nil, fmt.Errorf("cp: %w", err)
	}
	host, err := archive.Host()
	if err != nil {
		return nil, fmt.Errorf("cp: %w", err)
	}
	return &place{tree: host, path: keepEnd(arg, abs), shown: arg}, nil
}

// keepEnd keeps the end of a path that says something: a slash for a directory, /.
// for its content.
func keepEnd(written, clean string) string {
	switch {
	case clean == "/":
		return "/."
	case strings.HasSuffix(written, "/.") || written == ".":
		return clean + "/."
	case strings.HasSuffix(written, "/"):
		return clean + "/"
	}
	return clean
}

func (p *place) close() error {
	if p.tree == nil {
		return nil
	}
	return p.tree.Close()
}

// wantsDir tells whether the path can only be a directory's.
func (p *place) wantsDir() bool {
	return strings.HasSuffix(p.path, "/") || strings.HasSuffix(p.path, "/.")
}

// wantsContent tells whether the path is for the content of a directory.
func (p *place) wantsContent() bool { return strings.HasSuffix(p.path, "/.") }

// source looks at a path that is to be read.
func (p *place) source(follow bool) (archive.Info, error) {
	info, err := p.Stat(p.path, follow || p.wantsDir())
	switch {
	case err != nil:
		return info, p.error(err)
	case !info.Exists:
		return info, &hintError{fmt.Errorf("no such file or directory: %s", p.shown), "paths in a container begin at its root"}
	case p.wantsDir() && !info.IsDir():
		return info, fmt.Errorf("not a directory: %s", p.shown)
	}
	return info, nil
}

// error names the path as the user wrote it.
func (p *place) error(err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) {
		return fmt.Errorf("%s: %w", p.shown, perr.Err)
	}
	return err
}

// linksMost bounds the links in a row that are followed, as the kernel does.
const linksMost = 40

// destination looks at a path that is to be written to. A symbolic link at its
// end stands for what it leads to, even if that is still to be made.
func (p *place) destination() (archive.Info, error) {
	for range linksMost {
		info, err := p.Stat(strings.TrimSuffix(strings.TrimSuffix(p.path, "."), "/"), false)
		if err != nil || !info.IsLink() {
			if err != nil {
				err = p.error(err)
			}
			return info, err
		}
		target := info.Link
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(strings.TrimRight(p.path, "/.")), target)
		}
		p.path = keepEnd(p.path, path.Clean(target))
	}
	return archive.Info{}, fmt.Errorf("too many symbolic links: %s", p.shown)
}

// copy copies between two trees, by docker's rules.
func (c *CpCmd) copy(src, dst *place) error {
	from, err := src.source(c.FollowLink)
	if err != nil {
		return err
	}
	to, err := dst.destination()
	if err != nil {
		return err
	}
	name := path.Base(strings.TrimSuffix(src.path, "/."))
	dir := strings.TrimSuffix(dst.path, "/.")
	switch {
	case to.IsDir() && from.IsDir() && src.wantsContent():
		name = "."
	case to.IsDir():
	case to.Exists && from.IsDir():
		return fmt.Errorf("cannot copy a directory to the file %s", dst.shown)
	case to.Exists && dst.wantsDir():
		return fmt.Errorf("not a directory: %s", dst.shown)
	case dst.wantsDir() && !from.IsDir():
		return &hintError{fmt.Errorf("no such directory: %s", dst.shown), "make the directory first, or name the file without a slash at its end"}
	default:
		clean := strings.TrimRight(dir, "/")
		name, dir = path.Base(clean), path.Dir(clean)
		if err := dst.mustBeDir(dir); err != nil {
			return err
		}
	}
	write := archive.WriteOptions{Name: name, Follow: c.FollowLink || src.wantsDir()}
	extract := archive.ExtractOptions{Inside: true}
	if dst.inside != nil {
		extract = c.owners(dst, src.inside == nil, &write)
	}
	return transfer(
		func(w io.Writer) error { return src.error(src.Write(w, src.path, write)) },
		func(r io.Reader) error { return dst.Extract(r, dir, extract) },
	)
}

func (p *place) mustBeDir(dir string) error {
	info, err := p.Stat(dir, true)
	if err != nil {
		return p.error(err)
	}
	if !info.IsDir() {
		return &hintError{fmt.Errorf("no such directory: %s", dir), "cp makes no directories on the way"}
	}
	return nil
}

// owners says whose files become in a container.
func (c *CpCmd) owners(dst *place, fromHost bool, write *archive.WriteOptions) archive.ExtractOptions {
	rec := dst.inside.rec
	if c.Archive {
		if fromHost {
			write.Owner = func(uid, gid int) (int, int) { return insideID(rec.UIDs, uid), insideID(rec.GIDs, gid) }
		}
		return archive.ExtractOptions{Owners: archive.OwnersKept}
	}
	return archive.ExtractOptions{Owners: archive.OwnersFixed, UID: rootOf(rec.UIDs), GID: rootOf(rec.GIDs)}
}

// insideID is what an id of the host is in a container; one that is not there
// becomes root's.
func insideID(maps []specs.LinuxIDMapping, id int) int {
	for _, m := range maps {
		if id >= int(m.HostID) && id < int(m.HostID)+int(m.Size) {
			return int(m.ContainerID) + id - int(m.HostID)
		}
	}
	return rootOf(maps)
}

// rootOf is root's id in a container, or that of the one user there is.
func rootOf(maps []specs.LinuxIDMapping) int {
	for _, m := range maps {
		if m.ContainerID == 0 {
			return 0
		}
	}
	if len(maps) == 0 {
		return 0
	}
	return int(maps[0].ContainerID)
}

// transfer lets one side read what the other writes. An error of the reader's
// explains that of the writer.
func transfer(write func(io.Writer) error, read func(io.Reader) error) error {
	r, w := io.Pipe()
	var group errgroup.Group
	var werr error
	group.Go(func() error {
		werr = write(w)
		w.CloseWithError(werr)
		return nil
	})
	rerr := read(r)
	r.CloseWithError(errReader)
	if err := group.Wait(); err != nil {
		return err
	}
	if werr != nil && !errors.Is(werr, errReader) {
		return werr
	}
	return rerr
}

var errReader = errors.New("the other side of the copy has ended")

// pack writes a tar stream to standard output.
func (c *CpCmd) pack(app *App, src *place) error {
	if f, ok := app.Stdout.(*os.File); ok && isTerminal(f) {
		return &hintError{errors.New("a tar stream is not for a terminal"), "send it somewhere: urun cp " + c.Src + " - | tar t"}
	}
	if _, err := src.source(c.FollowLink); err != nil {
		return err
	}
	name := path.Base(strings.TrimSuffix(src.path, "/."))
	if src.wantsContent() {
		name = "."
	}
	return src.error(src.Write(app.Stdout, src.path, archive.WriteOptions{Name: name, Follow: c.FollowLink || src.wantsDir()}))
}

// unpack reads a tar stream from standard input, which keeps its owners as far as
// the container has them.
func (c *CpCmd) unpack(app *App, dst *place) error {
	to, err := dst.destination()
	if err != nil {
		return err
	}
	if !to.IsDir() {
		return &hintError{fmt.Errorf("no such directory: %s", dst.shown), "a tar stream is unpacked into a directory that is there"}
	}
	owners := archive.OwnersTried
	if c.Archive {
		owners = archive.OwnersKept
	}
	return dst.Extract(app.Stdin, strings.TrimSuffix(dst.path, "/."), archive.ExtractOptions{Owners: owners})
}
