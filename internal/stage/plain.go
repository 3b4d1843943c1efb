package stage

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/rootfs"
	"github.com/urun-dev/urun/internal/unpacked"
)

// A machine without FUSE cannot serve an image. What is done instead, with the kernel's overlayfs and without, is here.

// unpacked gets the image's tree as plain files, which all containers share.
func (s *setup) unpacked() (*os.File, error) {
	left, err := s.Unpacked.Ensure()
	if err != nil {
		return nil, spaceHint(err, plainCure)
	}
	s.noticePlain("there is no FUSE here: the image is unpacked in the store, once for all containers", left)
	return rootfs.Source(rootfs.Plan{Source: s.Unpacked.Dir})
}

func (s *setup) noticePlain(sentence, left string) {
	if left != "" {
		sentence += "; " + left
	}
	s.notices = append(s.notices, sentence)
}

// copyDir is where the files of a container of storage "copy" are, in its directory.
const copyDir = unpacked.OwnDir

// copied makes the container's own copy of the image, unless it has it, and mounts it.
func (s *setup) copied() error {
	if err := s.ensureCopy(); err != nil {
		return err
	}
	tree, err := rootfs.Source(rootfs.Plan{Source: copyDir})
	if err != nil {
		return err
	}
	defer tree.Close()
	return rootfs.AttachAt(tree, rootfs.Merged)
}

// ensureCopy copies the image into the container's directory, which is the working directory.
func (s *setup) ensureCopy() error {
	if s.Memory {
		return &hintError{
			errors.New("there is neither FUSE nor a usable overlayfs here, and a copy of the image is on disk"),
			"use --writable=disk, or give the job /dev/fuse",
		}
	}
	made, left, err := unpacked.Own(".", s.Unpacked, s.LowerDir)
	if err != nil {
		return spaceHint(err, plainCure)
	}
	switch {
	case made && s.Storage == StorageCopy && !s.Chroot:
		s.noticePlain("the container is a copy of its image, as was asked for", left)
	case made && !s.Chroot: // else that is said already
		s.noticePlain("there is neither FUSE nor a usable overlayfs here: the container is a copy of its image", left)
	case left != "":
		s.notices = append(s.notices, "the copy of the image: "+left)
	}
	return nil
}

// What to do where there is no room.
const (
	plainCure  = "without FUSE an image takes its size again: urun system prune, --root DIR on a larger disk, or a job with /dev/fuse"
	memoryCure = "make room with urun system prune, or keep what the container changes in memory: --writable=tmpfs"
)

// spaceHint adds what to do to the error of a disk that is full or read-only.
func spaceHint(err error, cure string) error {
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		if errors.Is(err, errno) {
			return &hintError{err, cure}
		}
	}
	return err
}
