// Package fuseunion serves the layers of a container image as one file system,
// without ever unpacking them: read-only, or with a writable layer on top.
//
// # The three steps
//
// Ingest. IndexTar reads one uncompressed layer tar, once, from front to back.
// It copies the bytes to a data file as they are and writes a binary index of
// what it saw: names, owners, modes, times, links, extended attributes, and for
// each file where its bytes lie in the tar. A layer is these two files, whatever
// it holds. Nothing of the tar is ever created on a file system, so it cannot
// write outside anything, and its owners need no privilege to be remembered.
//
// Merge. MergeTree applies the indexes of an image's layers to one another,
// bottom first, whiteouts and opaque directories included, and writes the
// result as one immutable tree. It is done once for an image; afterwards a
// lookup costs the same for one layer as for a hundred.
//
// Serve. OpenTree maps the tree (nothing is scanned), Mount makes a FUSE mount
// that is attached nowhere, Serve answers its requests from the mapped tree and
// reads file bytes at their offsets in the tars. Mount and Serve may run in two
// processes of one user namespace: the one that mounts hands the device's
// descriptor to the one that serves.
//
// # The writable layer
//
// OpenUnion puts a directory of the host, the upper one, on top of a Tree, or of
// another directory of the host (OpenDir), and ServeUnion serves both as one file
// system. It needs nothing but an ordinary directory: everything in it belongs to the
// process, so it works with one user id, on file systems without extended attributes and
// without overlayfs, and chown is remembered all the same.
//
// The upper directory is laid out as overlayfs lays it out: a file at its path, a
// character device 0/0 for what is removed. What the host can not say of a file (owner, mode,
// device number, ACLs, where it was copied up from) is in its attribute user.urun.meta,
// or in the ledger (rwledger.go), a log in the work directory. Where device nodes 0/0
// can not be made, a symbolic link to "(urun: removed)" stands for them.
//
// Inode numbers stay as they were when a file is copied up, across mounts, and agree
// with readdir: node ids are numbers of the lower file system, or the host's inode numbers,
// above them. A directory of the lower file system is renamed by giving it an upper
// directory that says where its content comes from; a file with several names is
// copied up once, into the index in the work directory, where all its names find it. Where
// the host has no hard links, names are references to a file in the work directory (rwlinks.go).
//
// Nothing is replaced in place: what is copied up, or takes the place of a whiteout, is
// made in the work directory and renamed. A server that is killed leaves all of an
// operation or nothing, but for renames on file systems that do not know RENAME_WHITEOUT,
// where both names may be left. After fsync(2) a file, its metadata and the way to it
// are on disk (Volatile: nothing is brought to disk).
//
// Of the kernel's features it does without the writeback cache, which would collect small writes. With it
// each close(2), also of a file that was only read, makes the kernel ask for the file's attributes again at the next
// stat(2) (fuse_flush, Linux 6.18), and each change of a regular file's ctime (unlink, rename, link) is a SETATTR.
// So what write(2) has taken is the host's, whoever is killed, and an error of the disk shows there.
//
// # The format
//
// A layer index and a merged tree share one format (format.go): a header, then
// checksums of every 16 KiB block of what follows, then arrays of fixed-size
// records. Opening checks the header and the table of checksums; a block is
// checked when it is first touched, so that opening costs the same for a small
// and a large tree. Every index and offset found in a record is checked against
// the section it points into when it is used. A damaged file therefore gives
// ErrDamaged (EIO to the reader of the mount), never a wrong answer or a panic.
// The contents of files have checksums too, of every 64 KiB of the tar; a chunk is
// checked when it is first read (content.go).
//
// Names in a directory are sorted by their bytes, and a lookup is a binary
// search over the mapped records. Node numbers are given in breadth-first
// order: the children of a directory lie side by side, as does what READDIRPLUS
// asks for. The node number plus one is the inode number and the FUSE node id,
// so the server keeps no state for a node and FORGET has nothing to free.
//
// # What a layer may hold
//
// Sparse files of all GNU formats become extents into the tar. Hard links share
// a node; a link whose target is in a lower layer is noted as a path by IndexTar
// and bound by MergeTree. A parent directory that the tar does not list is made
// up (0755, root) and marked as implicit, so that over a lower directory it adds
// entries and leaves the metadata alone. Over a lower symbolic link an implicit
// directory means the directory the link leads to, resolved inside the tree, as
// an unpacker that writes through the link would have it; a listed directory
// replaces the link.
//
// Whiteouts (".wh.NAME") and opaque markers (".wh..wh..opq") hide entries of lower
// layers only, wherever in the tar they stand. Other names that begin with
// ".wh..wh." are aufs's bookkeeping and are left out.
//
// A name given again takes the place of what the layer gave before, a directory
// with all that is in it; a directory given again changes its metadata alone; what
// stands over something that was replaced has nothing of the lower layers in it. A
// name may lead through the layer's own symbolic links. Leading slashes, "." and
// ".." count as docker counts them. So the tree is what umoci unpacks, but for this: what a layer
// lists twice, by its path and through a symbolic link of a lower layer, is as it is listed
// through the link, where an unpacker would take the one that comes later in the tar.
//
// The table of contents at the end of an eStargz layer and its prefetch marks are
// not part of the tree; that of a zstd:chunked one is in no tar.
//
// What no unpacker takes, or what none could write, is an error that names the
// entry: names that lead out of the root or through a file of their own layer,
// links to nowhere, names, sizes and numbers out of range.
//
// # Caching
//
// Nothing below a mount ever changes, so every entry, negative entry and
// attribute is valid for ever and the page cache is never dropped. OPEN and
// OPENDIR are answered with ENOSYS once, after which the kernel opens files
// without asking. Extended attributes are answered with ENOSYS when no node of
// the tree has one: the kernel then stops asking for the life of the mount,
// which saves a request per file and pass.
//
// # Requests
//
// The kernel's protocol is go-fuse's, but for the requests that are asked most, which are taken
// apart here (hot.go). One goroutine reads and answers, others help it while requests wait (loops.go).
//
// # Pushing
//
// What a fresh mount costs is round trips. When reads show a direction, the server
// puts the bytes that will be wanted next into the page cache before they are asked for
// (FUSE_NOTIFY_STORE): the small files that follow in a directory, the window
// around a small read of a large file, the windows ahead of a stream. See push.go.
//
// Names can not be pushed. Where lookups show a direction, ServeOptions.List is told
// which directories come next, and a process that may touch the mount lists them
// (ReadListings): then the kernel knows all that is in them. See ahead.go. A walk that looks
// nothing up gets names without attributes, of which the kernel would make inodes: bare.go.
//
// # Deadlocks
//
// A process that serves must not touch its own mount (it would wait for itself)
// and must not fork while it holds the device: a child that copies the
// descriptor keeps the connection alive after the server's death. The mount is
// made detached and belongs in the mount namespace of the container alone. If
// the server dies, the kernel answers ENOTCONN to whoever waits.
package fuseunion
