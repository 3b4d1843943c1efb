// Tarimage makes an OCI image of a tar of a root filesystem, cut into layers of about equal size.
//
//	tarimage [-layers N] [-add PROGRAM] TAR DIR
package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/urun-dev/urun/integration/ocilayout"
)

func main() {
	layers := flag.Int("layers", 1, "the `number` of layers")
	add := flag.String("add", "", "a static `program` to add to the first layer, below /")
	limit := flag.Int64("limit", 0, "stop after so many `bytes` of files (0: all)")
	flag.Parse()
	if flag.NArg() != 2 || *layers < 1 {
		fmt.Fprintln(os.Stderr, "usage: tarimage [-layers N] [-add PROGRAM] [-limit BYTES] TAR DIR")
		os.Exit(2)
	}
	if err := build(flag.Arg(0), flag.Arg(1), *add, *layers, *limit); err != nil {
		fmt.Fprintf(os.Stderr, "tarimage: %v\n", err)
		os.Exit(1)
	}
}

func build(file, dir, add string, n int, limit int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	total := fi.Size()
	if limit > 0 {
		total = min(total, limit)
	}
	c := &cutter{tr: tar.NewReader(f), share: total / int64(n)}

	var layers []ocilayout.Layer
	for i := range n {
		layers = append(layers, ocilayout.Entries(func(tw *tar.Writer) error {
			if i == 0 && add != "" {
				if err := ocilayout.HostFile(tw, path.Base(filepath.ToSlash(add)), add); err != nil {
					return err
				}
			}
			return c.layerOf(tw, i == n-1 && limit == 0)
		}))
	}
	_, err = ocilayout.Write(
		dir,
		ocilayout.Options{
			Tag: "latest", Architecture: runtime.GOARCH, GzipLevel: 6,
			Config: v1.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"bash"}},
		},
		layers...,
	)
	return err
}

// cutter deals the entries of a tar out to layers, in order.
type cutter struct {
	tr    *tar.Reader
	share int64
}

// layerOf writes a layer's share of the entries, or all that are left.
func (c *cutter) layerOf(tw *tar.Writer, rest bool) error {
	for written := int64(0); rest || written < c.share; {
		hdr, err := c.tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		written += 512 + hdr.Size
		if err := tw.WriteHeader(hdr); err != nil {
			return fmt.Errorf("%s: %w", hdr.Name, err)
		}
		if _, err := io.Copy(tw, c.tr); err != nil {
			return fmt.Errorf("%s: %w", hdr.Name, err)
		}
	}
	return nil
}
