package fuseunion

import (
	"context"
	"log/slog"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ServeUnion answers the requests of a mount that Mount made for dev with Writable
// set; otherwise it is like Serve.
//
// Nothing but the mount may change the union's directories meanwhile: the kernel
// keeps what it is told for ever.
func ServeUnion(ctx context.Context, dev *os.File, u *Union, opt ServeOptions) error {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	u.ids = idMap{opt, u.opt.Emulate != nil}
	defer func() { u.ahead.made() }()
	return serve(ctx, dev, newUnionProtocol(u, opt), opt, func(s *server) {
		u.slow = s.enterSlow
		if t, ok := u.low.(*treeLower); ok && opt.List != nil {
			u.ahead = s.lookAhead(t.Tree, opt)
		}
	})
}

func newUnionProtocol(u *Union, opt ServeOptions) protocol {
	logger := slog.NewLogLogger(opt.Log.Handler(), slog.LevelWarn)
	return protocolOf(&unionFS{fuse.NewDefaultRawFileSystem(), u}, &fuse.MountOptions{
		Name:                     "urun",
		MaxWrite:                 maxRequest,
		MaxReadAhead:             maxRequest,
		MaxBackground:            64,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		EnableAcl:                true,
		// DONT_MASK: a default ACL takes the place of the umask. HANDLE_KILLPRIV_V2: the kernel
		// need not ask for security.capability before each write. Not WRITEBACK_CACHE: see doc.go.
		ExtraCapabilities: fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 |
			fuse.CAP_SETXATTR_EXT | fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_ASYNC_DIO,
		Logger:       logger,
		PanicHandler: panicHandler(logger),
	})
}

// unionFS is a Union as go-fuse has it. CREATE is answered with ENOSYS, as OPEN,
// RELEASE and FLUSH are: the kernel then makes files by MKNOD, and asks for nothing
// more to open and close them.
type unionFS struct {
	fuse.RawFileSystem // ENOSYS to the rest
	u                  *Union
}

func (r *unionFS) String() string { return "urun" }

func (r *unionFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return status(r.u.lookup(h.NodeId, name, out))
}

func (r *unionFS) Forget(id, lookups uint64) { r.u.forget(id, lookups) }

func (r *unionFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	n, i, err := r.u.statNode(in.NodeId)
	switch {
	case err != nil:
		return status(err)
	case n == nil:
		return status(r.u.lowerAttr(i, &out.Attr))
	}
	return status(r.u.attr(n, &out.Attr))
}

func (r *unionFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return status(r.u.setAttr(in, out))
}

func (r *unionFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	s, err := r.u.readlink(h.NodeId)
	return []byte(s), status(err)
}

func (r *unionFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return status(r.u.create(&creation{
		dir: in.NodeId, name: name, mode: in.Mode, umask: in.Umask, rdev: in.Rdev, caller: r.u.caller(&in.InHeader),
	}, out))
}

func (r *unionFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return status(r.u.create(&creation{
		dir: in.NodeId, name: name, mode: unix.S_IFDIR | in.Mode&0o7777, umask: in.Umask, caller: r.u.caller(&in.InHeader),
	}, out))
}

func (r *unionFS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return status(r.u.create(&creation{
		dir: h.NodeId, name: name, mode: unix.S_IFLNK | 0o777, target: target, caller: r.u.caller(h),
	}, out))
}

func (r *unionFS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return status(r.u.tmpfile(&creation{
		dir: in.NodeId, mode: unix.S_IFREG | in.Mode&0o7777, umask: in.Umask, caller: r.u.caller(&in.InHeader),
	}, &out.EntryOut))
}

func (r *unionFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return status(r.u.link(in.Oldnodeid, in.NodeId, name, out))
}

func (r *unionFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return status(r.u.remove(h.NodeId, name, false))
}

func (r *unionFS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return status(r.u.remove(h.NodeId, name, true))
}

func (r *unionFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	return status(r.u.rename(in.NodeId, in.Newdir, oldName, newName, in.Flags))
}

func (r *unionFS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

func (r *unionFS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func (r *unionFS) Release(<-chan struct{}, *fuse.ReleaseIn)                 {}
func (r *unionFS) ReleaseDir(*fuse.ReleaseIn)                               {}
func (r *unionFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status         { return fuse.ENOSYS }
func (r *unionFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status    { return r.fsync(in) }
func (r *unionFS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return r.fsync(in) }
func (r *unionFS) fsync(in *fuse.FsyncIn) fuse.Status {
	return status(r.u.sync(in.NodeId, in.FsyncFlags&1 != 0))
}

func (r *unionFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return status(r.u.fallocate(in))
}

func (r *unionFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	got, err := r.u.read(in.NodeId, buf[:min(len(buf), int(in.Size))], in.Offset)
	if err != nil {
		return nil, status(err)
	}
	return readResult(got), fuse.OK
}

func (r *unionFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, err := r.u.write(in, data)
	return n, status(err)
}

func (r *unionFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	n, err := r.u.copyFileRange(in)
	return n, status(err)
}

// Lseek is answered with ENOSYS, after which the kernel takes files to have no holes.
func (r *unionFS) Lseek(<-chan struct{}, *fuse.LseekIn, *fuse.LseekOut) fuse.Status {
	return fuse.ENOSYS
}

func (r *unionFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.list(in, &dirReply{out: out})
}

func (r *unionFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.list(in, &dirReply{out: out, plus: true})
}

func (r *unionFS) list(in *fuse.ReadIn, l *dirReply) fuse.Status {
	n, i, err := r.u.statNode(in.NodeId)
	switch {
	case err != nil:
		return status(err)
	case n == nil:
		return status(r.u.list(nil, i, in.Offset, l))
	}
	return status(r.u.list(n, 0, in.Offset, l))
}

func (r *unionFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if name == selinuxXattr {
		return 0, fuse.Status(unix.EOPNOTSUPP)
	}
	get := r.u.getXattr
	if name == OwnerXattr && r.u.opt.Emulate != nil {
		get = func(id uint64, _ string, dest []byte) (int, error) { return r.u.ownerXattr(id, dest) }
	}
	n, err := get(h.NodeId, name, dest)
	return uint32(max(n, 0)), status(err)
}

func (r *unionFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, err := r.u.listXattr(h.NodeId, dest)
	return uint32(max(n, 0)), status(err)
}

func (r *unionFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	value = value[:min(len(value), int(in.Size))]
	if name == OwnerXattr && r.u.opt.Emulate != nil {
		return status(r.u.setOwnerXattr(in.NodeId, value))
	}
	kill := in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	return status(r.u.setXattr(in.NodeId, name, value, int(in.Flags), kill))
}

func (r *unionFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return status(r.u.setXattr(h.NodeId, name, nil, 0, false))
}

// StatFs describes the file system of the upper directory.
func (r *unionFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := unix.Fstatfs(r.u.upperFD, &st); err != nil {
		return status(err)
	}
	out.Blocks, out.Bfree, out.Bavail = st.Blocks, st.Bfree, st.Bavail
	out.Files, out.Ffree = st.Files, st.Ffree
	out.Bsize, out.Frsize, out.NameLen = uint32(st.Bsize), uint32(st.Frsize), maxName
	return fuse.OK
}
