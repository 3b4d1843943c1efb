// Package rootfs builds a container's mount tree.
//
// Mounts are data (specs.Mount, as in an OCI runtime spec): Parse turns the
// options of one into a plan without touching the system, and a Root applies
// it. The code runs in the init stage (P3), in the container's own mount
// namespace, before the root is pivoted.
//
// Invariants:
//
//   - A path inside the container's root is only ever resolved with
//     openat2(RESOLVE_IN_ROOT), and what is found is mounted on through its file
//     descriptor (fsopen, open_tree, move_mount). A symlink planted in an image or
//     exchanged by another container that shares a volume can not lead a mount,
//     a mask or a write elsewhere (CVE-2025-31133, CVE-2025-52565,
//     CVE-2025-52881, CVE-2019-19921).
//   - Host paths are resolved by Sources before any content of the container
//     is looked at, with the caller's own permissions.
package rootfs
