// Nineimage makes an OCI image of nine layers that has what layers can have: 50,000 small files, whiteouts, opaque
// directories, hard links across layers, set-id files, extended attributes, odd names, sparse files, devices, and each
// type of file replaced by each other. All of it is below /tree; /probe is a static program.
//
//	nineimage -probe PROGRAM DIR
package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/urun-dev/urun/integration/ocilayout"
)

const (
	dirs    = 250
	perDir  = 200
	maxSize = 400
)

func main() {
	probe := flag.String("probe", "", "the static `program` to add as /probe")
	flag.Parse()
	if flag.NArg() != 1 || *probe == "" {
		fmt.Fprintln(os.Stderr, "usage: nineimage -probe PROGRAM DIR")
		os.Exit(2)
	}
	if err := build(flag.Arg(0), *probe); err != nil {
		fmt.Fprintf(os.Stderr, "nineimage: %v\n", err)
		os.Exit(1)
	}
}

func build(dir, probe string) error {
	opt := ocilayout.Options{Tag: "latest", Architecture: runtime.GOARCH, GzipLevel: 6, Config: v1.ImageConfig{Cmd: []string{"/probe", "list", "/tree"}}}
	layers := []func(*layer){small, modes, attributes, links, replaced, deleted, opaque, names, special}
	var written []ocilayout.Layer
	for i, fill := range layers {
		written = append(written, func(w io.Writer) error {
			if i == len(layers)-1 {
				if err := sparse(w); err != nil {
					return err
				}
			}
			tw := tar.NewWriter(w)
			l := &layer{tw: tw, rnd: rand.New(rand.NewPCG(uint64(i), 2024))}
			if i == 0 {
				l.keep(ocilayout.HostFile(tw, "probe", probe))
			}
			fill(l)
			return errors.Join(l.err, tw.Close())
		})
	}
	_, err := ocilayout.Write(dir, opt, written...)
	return err
}

// layer writes entries until one fails.
type layer struct {
	tw  *tar.Writer
	rnd *rand.Rand
	err error
}

func (l *layer) keep(err error) { l.err = errors.Join(l.err, err) }

// add writes one entry; a name without a time of its own gets one that depends on the layer's sequence.
func (l *layer) add(hdr tar.Header, content string) {
	if hdr.ModTime.IsZero() {
		hdr.ModTime = ocilayout.Epoch.Add(time.Duration(l.rnd.IntN(1e8)) * time.Second)
	}
	if hdr.Format == tar.FormatUnknown {
		hdr.Format = tar.FormatPAX
	}
	if hdr.Typeflag == tar.TypeDir {
		hdr.Name += "/"
	}
	l.keep(ocilayout.Entry(l.tw, &hdr, content))
}

func (l *layer) dir(name string) {
	l.add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, "")
}

func (l *layer) file(name, content string) {
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content)
}

func (l *layer) symlink(name, target string) {
	l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "")
}

func (l *layer) link(name, target string) {
	l.add(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, "")
}
func (l *layer) whiteout(dir, name string) { l.file(dir+"/.wh."+name, "") }

// small is layer 1: the directories and 50,000 files.
func small(l *layer) {
	l.dir(".")
	for _, d := range strings.Fields("dev etc proc sys tmp tree tree/small tree/replace tree/delete tree/opaque tree/links tree/sparse") {
		l.dir(d)
	}
	modes := []int64{0o644, 0o600, 0o755, 0o440, 0o4755, 0}
	for d := range dirs {
		name := fmt.Sprintf("tree/small/d%03d", d)
		l.dir(name)
		for f := range perDir {
			content := make([]byte, l.rnd.IntN(maxSize))
			for i := range content {
				content[i] = byte('a' + l.rnd.IntN(26))
			}
			l.add(tar.Header{
				Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/f%05d", name, d*perDir+f), Mode: modes[l.rnd.IntN(len(modes))],
				Uid: l.rnd.IntN(3) * 1000, Gid: l.rnd.IntN(3) * 50,
			}, string(content))
		}
	}
	for _, kind := range kinds {
		for _, other := range kinds {
			l.make(kind, "tree/replace/"+kind+"-by-"+other)
		}
		l.make(kind, "tree/delete/"+kind)
		l.make(kind, "tree/delete/"+kind+"-again")
		l.make(kind, "tree/opaque/"+kind)
	}
	l.dir("tree/delete/deep")
	l.dir("tree/delete/deep/er")
	l.file("tree/delete/deep/er/file", "deep\n")
}

// kinds are the types of files that may replace each other.
var kinds = []string{"dir", "file", "symlink", "fifo", "device", "linked"}

func (l *layer) make(kind, name string) {
	switch kind {
	case "dir":
		l.dir(name)
		l.file(name+"/inside", name)
	case "file":
		l.file(name, name)
	case "symlink":
		l.symlink(name, "/tree/small")
	case "fifo":
		l.add(tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o620}, "")
	case "device":
		l.add(tar.Header{Typeflag: tar.TypeChar, Name: name, Mode: 0o666, Devmajor: 1, Devminor: 5}, "")
	case "linked":
		l.file(name, name)
		l.link(name+".other", name)
	}
}

// modes is layer 2: set-id bits, owners, sticky directories.
func modes(l *layer) {
	l.dir("tree/modes")
	for _, mode := range []int64{0o4755, 0o2755, 0o6755, 0o4711, 0o1644, 0o7777, 0o4000, 0} {
		for _, owner := range []int{0, 1, 33, 1000, 65534} {
			l.add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("tree/modes/file-%04o-%d", mode, owner), Mode: mode, Uid: owner, Gid: owner}, "x")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("tree/modes/dir-%04o-%d", mode, owner), Mode: mode | 0o100, Uid: owner, Gid: owner}, "")
		}
	}
	times := map[string]time.Time{
		"epoch": time.Unix(0, 0), "nanoseconds": time.Unix(1700000000, 123456789), "before-1970": time.Unix(-86400, 0),
		"after-2038": time.Unix(4102444800, 0), "nano-one": time.Unix(1, 1),
	}
	for _, name := range []string{"epoch", "nanoseconds", "before-1970", "after-2038", "nano-one"} {
		l.add(tar.Header{Typeflag: tar.TypeReg, Name: "tree/modes/time-" + name, Mode: 0o644, ModTime: times[name]}, name)
	}
}

// attributes is layer 3.
func attributes(l *layer) {
	// struct vfs_cap_data, revision 2 with the effective bit: cap_net_bind_service, cap_net_raw.
	const capability = "\x01\x00\x00\x02\x00\x24\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	l.dir("tree/xattr")
	with := func(name string, typ byte, records map[string]string) {
		pax := map[string]string{}
		for k, v := range records {
			pax["SCHILY.xattr."+k] = v
		}
		l.add(tar.Header{Typeflag: typ, Name: "tree/xattr/" + name, Mode: 0o755, PAXRecords: pax}, "")
	}
	with("capability", tar.TypeReg, map[string]string{"security.capability": capability})
	with("user", tar.TypeReg, map[string]string{"user.name": "value", "user.binary": "\x01\xff\xfe=\n;", "user.other": "x"})
	with("both", tar.TypeReg, map[string]string{"user.a": "1", "security.capability": capability})
	with("large", tar.TypeReg, map[string]string{"user.large": strings.Repeat("v", 3000)})
	with("dir", tar.TypeDir, map[string]string{"user.on.a.directory": "yes"})
}

// links is layer 4: hard links within a layer and to layers below.
func links(l *layer) {
	l.link("tree/links/across-1", "tree/small/d000/f00000")
	l.link("tree/links/across-2", "tree/small/d000/f00000")
	l.link("tree/links/across-modes", "tree/modes/file-4755-1000")
	l.link("tree/links/across-xattr", "tree/xattr/capability")
	l.file("tree/links/own", "own\n")
	l.link("tree/links/own-2", "tree/links/own")
	l.link("tree/links/own-3", "tree/links/own-2")
	l.file("tree/links/first-goes", "kept under the other name\n")
	l.link("tree/links/first-goes-other", "tree/links/first-goes")
	l.file("tree/links/first-replaced", "the old content\n")
	l.link("tree/links/first-replaced-other", "tree/links/first-replaced")
	l.symlink("tree/links/dangling", "/no/such/file")
	l.symlink("tree/links/loop", "loop")
	l.symlink("tree/links/relative", "../small/d001/./../d001/f00200")
	l.symlink("tree/links/long", strings.Repeat("x/", 500)+"end")
	l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "tree/links/owned", Linkname: "own", Mode: 0o777, Uid: 1000, Gid: 50}, "")
}

// replaced is layer 5: each type of file by each other, and a name of a hard link.
func replaced(l *layer) {
	for _, kind := range kinds {
		for _, other := range kinds {
			l.make(other, "tree/replace/"+kind+"-by-"+other)
		}
	}
	l.file("tree/links/first-replaced", "the new content\n")
	l.file("tree/small/d002/f00400", "replaced\n")
	l.add(tar.Header{Typeflag: tar.TypeDir, Name: "tree/small/d003", Mode: 0o700, Uid: 1000, Gid: 1000}, "")
}

// deleted is layer 6: whiteouts, of which some names come back in layer 7.
func deleted(l *layer) {
	for _, kind := range kinds {
		l.whiteout("tree/delete", kind)
		l.whiteout("tree/delete", kind+"-again")
	}
	l.whiteout("tree/delete", "deep")
	l.whiteout("tree/links", "first-goes")
	l.whiteout("tree/small", "d004")
	for f := 1000; f < 1100; f++ {
		l.whiteout("tree/small/d005", fmt.Sprintf("f%05d", f))
	}
	l.whiteout("tree/small", "never-was")
}

// opaque is layer 7.
func opaque(l *layer) {
	l.dir("tree/opaque")
	l.file("tree/opaque/.wh..wh..opq", "")
	l.file("tree/opaque/new", "new\n")
	l.dir("tree/opaque/dir")
	l.file("tree/opaque/dir/other", "other\n")
	l.dir("tree/small/d006")
	l.file("tree/small/d006/.wh..wh..opq", "")
	for _, kind := range kinds {
		l.make("dir", "tree/delete/"+kind+"-again")
	}
	l.dir("tree/delete/deep")
}

// names is layer 8.
func names(l *layer) {
	l.dir("tree/names")
	long := strings.Repeat("n", 255)
	odd := []string{
		"space in it", " leading", "trailing ", "-dash", "new\nline", "tab\tbed", "back\\slash", "quote\"'", "glob*?[x]", "dollar$(x)`y`", "ünïcödé-日本語-🙂",
		"not-utf8-\xff\xfe", "\x01\x7f", "...", "..x", ".hidden", "wh.x", ".whiteout", ".w", "~", "#", "CON", "a:b", long, "e\u0301 decomposed", "é composed",
	}
	for _, name := range odd {
		l.file("tree/names/"+name, name)
	}
	deep := "tree/names"
	for range 12 {
		deep += "/" + strings.Repeat("d", 200)
		l.dir(deep)
	}
	l.file(deep+"/at the end", "deep\n")
}

// sparse writes the entries that GNU tar makes of a file with holes, in two of its formats: Go's writer knows none, and umoci not the third.
// They come first in layer 9.
func sparse(w io.Writer) (err error) {
	tmp, err := os.MkdirTemp("", "nineimage-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for _, version := range []string{"0.1", "1.0"} {
		name := "tree/sparse/pax-" + version
		if err := holes(filepath.Join(tmp, name)); err != nil {
			return err
		}
		cmd := exec.Command("tar", "--format=pax", "--sparse", "--sparse-version="+version, "--blocking-factor=1", "--owner=0", "--group=0", "--mtime=@1600000000",
			"-C", tmp, "-cf", "-", name)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("tar: %w", err)
		}
		if len(out) > 1<<20 {
			return fmt.Errorf("tar wrote %d bytes: the file has no holes here", len(out))
		}
		// Without the two blocks that end an archive: more entries follow.
		if _, err := w.Write(out[:len(out)-1024]); err != nil {
			return err
		}
	}
	return nil
}

func holes(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for at, text := range map[int64]string{0: "start", 1 << 20: "middle", 30<<20 - 3: "end", 50 << 20: "x"} {
		_, werr := f.WriteAt([]byte(text), at)
		err = errors.Join(err, werr)
	}
	return errors.Join(err, f.Truncate(64<<20), f.Close())
}

// special is layer 9.
func special(l *layer) {
	l.dir("tree/special")
	l.add(tar.Header{Typeflag: tar.TypeFifo, Name: "tree/special/fifo", Mode: 0o644, Uid: 33}, "")
	for _, d := range []struct {
		typ          byte
		major, minor int64
	}{{tar.TypeChar, 1, 3}, {tar.TypeChar, 10, 229}, {tar.TypeBlock, 8, 0}, {tar.TypeBlock, 259, 70000}, {tar.TypeChar, 4095, 1048575}} {
		l.add(tar.Header{
			Typeflag: d.typ, Name: fmt.Sprintf("tree/special/%c-%d-%d", d.typ, d.major, d.minor), Mode: 0o660, Gid: 6,
			Devmajor: d.major, Devminor: d.minor,
		}, "")
	}
	l.file("tree/special/empty", "")
	l.file("tree/special/large", strings.Repeat("0123456789abcdef", 1<<19))
}
