// Package imagemount shows the files of an image to processes outside of any
// container.
//
// On a directory of the host, in the caller's mount namespace, only fusermount3 can
// mount for a user without privilege: Attach has it do so and leaves a process
// behind that serves the mount until Detach, or umount, takes it away. Where there
// is no fusermount3, Run runs a command in a user and mount namespace of its own, in
// which the image is mounted; it serves that mount itself.
//
// A caller that is root, of the host or of a user namespace, mounts by itself.
//
// Attach, Run, Detach and List work in the process that the user started. Main is
// the stage that they start: the server of Attach, or, in the new namespaces, what
// mounts and then becomes the command of Run.
package imagemount
