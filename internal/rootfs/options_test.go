package rootfs

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   specs.Mount
		want Plan
		err  bool
	}{
		{
			name: "a tmpfs keeps its own options apart from the mount's",
			in:   specs.Mount{Destination: "/t", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=64k", "mode=1777"}},
			want: Plan{Source: "tmpfs", Target: "/t", Type: "tmpfs", Create: true, Data: []string{"size=64k", "mode=1777"}, Attr: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}},
		},
		{
			name: "the last of contradicting options wins",
			in:   specs.Mount{Destination: "/b", Type: "bind", Source: "/s", Options: []string{"rbind", "ro", "rw", "rprivate"}},
			want: Plan{Source: "/s", Target: "/b", Type: "bind", Create: true, Bind: true, Recursive: true, AttrRecursive: true, Attr: unix.MountAttr{Propagation: unix.MS_PRIVATE}},
		},
		{name: "a bind has no options of a filesystem", in: specs.Mount{Destination: "/b", Type: "bind", Options: []string{"size=1"}}, err: true},
		{name: "a relative target is refused", in: specs.Mount{Destination: "b", Type: "tmpfs"}, err: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.in)
			if (err != nil) != tt.err {
				t.Fatalf("error %v", err)
			}
			if err == nil && (got.Attr != tt.want.Attr || got.Bind != tt.want.Bind || got.Recursive != tt.want.Recursive || got.AttrRecursive != tt.want.AttrRecursive || !slices.Equal(got.Data, tt.want.Data) || got.Target != tt.want.Target) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}
