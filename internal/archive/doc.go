// Package archive makes tar streams of parts of a directory tree and unpacks them
// into one, while somebody else may be changing the tree to lead it astray: a
// program in a container that exchanges directories for symbolic links.
//
// Every path is resolved by openat2(2) against the descriptor of the tree's root,
// with RESOLVE_IN_ROOT: links, absolute ones as well, are followed as the container
// would follow them, and never lead out. From there on the walk goes from
// descriptor to descriptor, one name at a time, with O_NOFOLLOW; a name that has
// become something else meanwhile is an error or is left out, never followed.
// Special files are not opened.
//
// The package runs in the command (P0) for the host's side, where the root is the
// host's own, and in the stage __files, in the container's user namespace, for the
// container's.
package archive
