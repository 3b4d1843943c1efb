package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// ImageTreeCmd lists the files of an image.
type ImageTreeCmd struct {
	Depth  int    `short:"d" placeholder:"N" help:"Go no more than N levels below PATH."`
	Format string `enum:"text,json" default:"text" help:"text, or json: an object a line."`
	Image  string `arg:"" help:"Name or id."`
	Path   string `arg:"" optional:"" default:"/" help:"Directory or file in the image."`
}

// Run prints a line for each: mode, owner, size, layer from 1 on, and name.
func (c *ImageTreeCmd) Run(app *App) (err error) {
	if c.Depth < 0 {
		return fmt.Errorf("--depth %d: want a number of levels", c.Depth)
	}
	o, err := app.openImage(c.Image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	root := strings.Trim(c.Path, "/")
	out := newOutput(app.Stdout)
	err = o.tree.WalkFrom(root, func(name string, st fuseunion.Stat) error {
		e, err := o.entry(name, st)
		if err != nil {
			return err
		}
		if c.Format == "json" {
			err = jsonLine(out, e)
		} else {
			_, err = fmt.Fprintln(out, e.line())
		}
		if below := strings.TrimPrefix(strings.TrimPrefix(name, root), "/"); err == nil && c.Depth > 0 && below != "" && strings.Count(below, "/")+1 >= c.Depth && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fs.SkipDir
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("image %s has no %s", c.Image, c.Path)
	}
	return errors.Join(err, out.Flush())
}

// treeEntry is one file, as JSON.
type treeEntry struct {
	Path   string
	Mode   string // as ls has it
	UID    uint32
	GID    uint32
	Size   int64
	Links  uint32
	Mtime  time.Time
	Layer  int               // from 1 on, the lowest first
	DiffID string            // of the layer
	Target string            `json:",omitempty"` // of a link
	Device string            `json:",omitempty"` // major:minor
	Xattrs map[string][]byte `json:",omitempty"`
}

func (o *openImage) entry(name string, st fuseunion.Stat) (*treeEntry, error) {
	e := &treeEntry{
		Path: "/" + name, Mode: modeString(st.Mode), UID: st.UID, GID: st.GID, Size: st.Size, Links: st.Nlink, Mtime: st.Mtime,
		Layer: st.Layer + 1,
	}
	if st.Layer < len(o.img.Layers) { // an image of no layers has a root
		e.DiffID = o.img.Layers[st.Layer].DiffID.String()
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := o.tree.Readlink(st.Ino)
		if err != nil {
			return nil, err
		}
		e.Target = target
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Device = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	xattrs, err := o.tree.Xattrs(st.Ino)
	if err != nil {
		return nil, err
	}
	for k, v := range xattrs {
		if e.Xattrs == nil {
			e.Xattrs = make(map[string][]byte)
		}
		e.Xattrs[k] = []byte(v)
	}
	return e, nil
}

func (e *treeEntry) line() string {
	size := strconv.FormatInt(e.Size, 10)
	switch {
	case e.Device != "":
		size = e.Device
	case e.Mode[0] != '-':
		size = "-"
	}
	plus := " "
	if len(e.Xattrs) > 0 {
		plus = "+"
	}
	line := fmt.Sprintf("%s%s %11s %11s %3d  %s", e.Mode, plus, fmt.Sprintf("%d:%d", e.UID, e.GID), size, e.Layer, printable(e.Path))
	if e.Target != "" {
		line += " -> " + printable(e.Target)
	}
	return line
}

// modeString writes a mode as ls does.
func modeString(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	b[0] = map[uint32]byte{
		unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c',
		unix.S_IFBLK: 'b', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's',
	}[mode&unix.S_IFMT]
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit uint32
		at  int
		set byte
	}{{unix.S_ISUID, 3, 's'}, {unix.S_ISGID, 6, 's'}, {unix.S_ISVTX, 9, 't'}} {
		if mode&s.bit == 0 {
			continue
		}
		if b[s.at] == '-' {
			s.set -= 'a' - 'A'
		}
		b[s.at] = s.set
	}
	return string(b)
}

// printable quotes a name that would upset a terminal or look like two.
func printable(s string) string {
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

// jsonLine writes a value as one line, with the names of files as they are.
func jsonLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func newOutput(w io.Writer) *bufio.Writer { return bufio.NewWriterSize(w, 64<<10) }
