// Package image finds, fetches and keeps container images.
//
// A Store is a directory that belongs wholly to the user who calls: plain files and directories, no
// extended attributes, no other owner, so that `rm -rf` removes it.
//
//	version                               format of the store
//	layers/sha256/<diffID>/{data,index}   one uncompressed tar and its fuseunion index
//	trees/<chainID>                       merged tree of an image's layers
//	images/sha256/<config digest>         the image config, byte for byte; its name is its digest and the image's ID
//	images/names/<reference>              the ID that a name stands for ('/' is written '+')
//	tmp/<key>/, tmp/<key>.lock            ingest in progress
//	lock                                  held while names and configs change
//
// Invariants:
//
//   - Nothing under layers, trees and images is ever written in place. A layer directory, a tree, a config and a
//     name appear whole, by rename, after fsync. A process killed at any moment, or a full disk, leaves only files in tmp, and
//     a killed one that was removing an image layers that the next removal or prune takes.
//   - Work in tmp is held by a flock on tmp/<key>.lock. Whoever gets that lock may remove tmp/<key>. Processes
//     that want the same layer wait for the lock and then find the layer.
//   - Whoever relies on a file that no committed image protects holds a shared flock on it (a pin). Removal takes
//     the exclusive lock without waiting and leaves alone what is pinned.
//   - A blob is believed only after its digest matched, a layer only after its diffID matched; both are computed on the
//     one streaming pass that writes the layer.
//
// The package runs in the process that the user started, in the host's namespaces. It imports fuseunion for the layer format
// and is the only package of the project that speaks HTTP.
package image
