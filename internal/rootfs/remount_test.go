package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What kernels without mount_setattr(2) get, on whatever kernel this is.
func TestRemountingDoesWhatMountSetattrDoes(t *testing.T) {
	if !namespaced(t) {
		return
	}
	for _, c := range []struct {
		options []string
		below   bool // the mount below gets it too
	}{
		{[]string{"rbind", "ro"}, false},
		{[]string{"rbind", "rro"}, true},
		{[]string{"rbind", "nosuid", "nodev", "noexec", "noatime"}, false},
		{[]string{"rbind", "rro", "rnosuid", "rnoexec", "rstrictatime"}, true},
		{[]string{"rbind", "nodiratime", "relatime"}, false},
	} {
		root, dir, host := testRoot(t)
		if err := os.MkdirAll(filepath.Join(host, "a b/deep"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, sub := range []string{"a b", "a b/deep"} {
			if err := unix.Mount("tmpfs", filepath.Join(host, sub), "tmpfs", unix.MS_NODEV, ""); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(host, "a b/deep"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		shown := map[string][]int64{}
		for name, apply := range map[string]func(mount, target *os.File, p Plan) error{
			"new": func(mount, target *os.File, p Plan) error {
				return attachWith(mount, target, p.Attr, p.AttrRecursive)
			},
			"old": func(mount, target *os.File, p Plan) error {
				return errors.Join(attach(mount, target), remount(mount, p.Attr, p.AttrRecursive))
			},
		} {
			p, err := Parse(specs.Mount{Destination: "/" + name, Type: "bind", Source: host, Options: c.options})
			if err != nil {
				t.Fatal(err)
			}
			mount, err := Source(p)
			if err != nil {
				t.Fatal(err)
			}
			target, err := root.MkdirAll(p.Target, 0o755)
			if err != nil {
				t.Fatal(err)
			}
			if err := apply(mount, target, p); err != nil {
				t.Fatalf("%v, %s: %v", c.options, name, err)
			}
			if err := errors.Join(mount.Close(), target.Close()); err != nil {
				t.Fatal(err)
			}
			for _, sub := range []string{"", "a b", "a b/deep"} {
				var st unix.Statfs_t
				if err := unix.Statfs(filepath.Join(dir, name, sub), &st); err != nil {
					t.Fatal(err)
				}
				shown[name] = append(shown[name], st.Flags)
			}
		}
		for i, flags := range shown["new"] {
			if shown["old"][i] != flags {
				t.Errorf("%v, mount %d: flags %#x, want %#x", c.options, i, shown["old"][i], flags)
			}
		}
		if changed := shown["old"][2]&unix.ST_RDONLY != 0; changed != c.below {
			t.Errorf("%v: below read-only: %v", c.options, changed)
		}
	}
}

// A mount below a link that somebody put in its way is not looked for elsewhere.
func TestRemountingFollowsNoLink(t *testing.T) {
	if !namespaced(t) {
		return
	}
	_, dir, host := testRoot(t)
	for _, d := range []string{filepath.Join(dir, "v/sub"), filepath.Join(host, "sub")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(host, "sub"), filepath.Join(dir, "v/link")); err != nil {
		t.Fatal(err)
	}
	top, err := os.Open(filepath.Join(dir, "v"))
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := (submount{1, "link"}).remount(top, ro); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link: %v", err)
	}
	if err := (submount{1, "../../host"}).remount(top, ro); !errors.Is(err, unix.EXDEV) {
		t.Errorf("a way out: %v", err)
	}
}
