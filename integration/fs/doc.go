// Package fs tests the file systems that containers are given, as their processes
// see them: the union of package fuseunion, the kernel's overlayfs over an image that
// fuseunion serves, and, as the reference for both, overlayfs over an unpacked tree
// and the plain file system.
//
// A test runs again in a user namespace, where it may mount, with all ids that its
// user has.
package fs
