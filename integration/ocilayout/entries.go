package ocilayout

import (
	"archive/tar"
	"io"
	"os"
)

// Dir adds a directory owned by root.
func Dir(tw *tar.Writer, name string, mode int64) error {
	return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: Epoch})
}

// File adds a file owned by root.
func File(tw *tar.Writer, name string, mode int64, content string) error {
	return Entry(tw, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

// Symlink adds a symbolic link.
func Symlink(tw *tar.Writer, name, target string) error {
	return Entry(tw, &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "")
}

// Whiteout adds the marker that deletes the entry of that name in the layers below.
func Whiteout(tw *tar.Writer, dir, name string) error {
	return File(tw, dir+"/.wh."+name, 0o644, "")
}

// Entry adds any entry; its size is that of content and its time, if none is set, is Epoch.
func Entry(tw *tar.Writer, hdr *tar.Header, content string) error {
	if hdr.ModTime.IsZero() {
		hdr.ModTime = Epoch
	}
	if hdr.PAXRecords != nil {
		hdr.Format = tar.FormatPAX
	}
	hdr.Size = int64(len(content))
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := io.WriteString(tw, content)
	return err
}

// HostFile adds a copy of the host's file at path as name, owned by root and without its set-id bits.
func HostFile(tw *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: fi.Size(), Mode: int64(fi.Mode().Perm()), ModTime: Epoch}
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}
