package userns

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	wholeHost = []Range{{0, 0, 4294967295}}
	jane      = Identity{UID: 1000, GID: 1000, Name: "jane"}
	rootUser  = Identity{Name: "root"}
)

func TestPlan(t *testing.T) {
	grant := []SubRange{{100000, 65536}}
	two := []SubRange{{100000, 500}, {300000, 1000}}
	void := &Error{Op: "find newuidmap", Err: exec.ErrNotFound, Cure: cureInstall}
	for _, tc := range []struct {
		name string
		req  Request
		id   Identity
		host host
		want string // the map's string, "error: " and a part of the error otherwise
		note string // a part of Map.Note
	}{
		{
			"auto makes the caller root",
			Request{},
			jane,
			host{subUIDs: grant, subGIDs: grant},
			"uid 0:1000:1,1:100000:65536 gid 0:1000:1,1:100000:65536", "",
		},
		{
			"auto lines several ranges up",
			Request{Mode: "auto"},
			jane,
			host{subUIDs: two, subGIDs: grant},
			"uid 0:1000:1,1:100000:500,501:300000:1000 gid 0:1000:1,1:100000:65536", "",
		},
		{
			"auto without a grant is a single id",
			Request{},
			jane,
			host{},
			"uid 0:1000:1 gid 0:1000:1", "jane has no subordinate uids",
		},
		{
			"auto with uids but no gids is a single id",
			Request{},
			jane,
			host{subUIDs: grant},
			"uid 0:1000:1 gid 0:1000:1", "jane has no subordinate gids",
		},
		{
			"auto without newuidmap is a single id",
			Request{},
			jane,
			host{subUIDs: grant, subGIDs: grant, helpers: void},
			"uid 0:1000:1 gid 0:1000:1", "newuidmap",
		},
		{
			"a grant that holds the caller's own id gives it once",
			Request{},
			jane,
			host{subUIDs: []SubRange{{900, 200}}, subGIDs: grant},
			"uid 0:1000:1,1:900:100,101:1001:99 gid 0:1000:1,1:100000:65536", "",
		},
		{
			"keep-id leaves the caller's number",
			Request{Mode: "keep-id"},
			jane,
			host{subUIDs: grant, subGIDs: grant},
			"uid 0:100000:1000,1000:1000:1,1001:101000:64536 gid 0:100000:1000,1000:1000:1,1001:101000:64536", "",
		},
		{
			"keep-id splits several ranges",
			Request{Mode: "keep-id"},
			jane,
			host{subUIDs: two, subGIDs: two},
			"uid 0:100000:500,500:300000:500,1000:1000:1,1001:300500:500 gid 0:100000:500,500:300000:500,1000:1000:1,1001:300500:500", "",
		},
		{
			"keep-id with a chosen number",
			Request{Mode: "keep-id", UID: ptr(2), GID: ptr(0)},
			jane,
			host{subUIDs: grant, subGIDs: grant},
			"uid 0:100000:2,2:1000:1,3:100002:65534 gid 0:1000:1,1:100000:65536", "",
		},
		{
			"keep-id above a small grant leaves a gap",
			Request{Mode: "keep-id"},
			jane,
			host{subUIDs: []SubRange{{100000, 10}}, subGIDs: []SubRange{{100000, 1000}}},
			"uid 0:100000:10,1000:1000:1 gid 0:100000:1000,1000:1000:1", "",
		},
		{"keep-id without a grant", Request{Mode: "keep-id"}, jane, host{}, "uid 1000:1000:1 gid 1000:1000:1", "no subordinate"},
		{
			"single asks for nothing more",
			Request{Mode: "single"},
			jane,
			host{subUIDs: grant, subGIDs: grant},
			"uid 0:1000:1 gid 0:1000:1", "",
		},
		{
			"host is auto for an ordinary user",
			Request{Mode: "host"},
			jane,
			host{subUIDs: grant, subGIDs: grant},
			"uid 0:1000:1,1:100000:65536 gid 0:1000:1,1:100000:65536", "",
		},
		{
			"real root without a grant keeps all ids",
			Request{},
			rootUser,
			host{direct: true},
			"uid 0:0:4294967295 gid 0:0:4294967295", "",
		},
		{
			"real root with a grant uses it",
			Request{},
			rootUser,
			host{direct: true, subUIDs: grant, subGIDs: grant},
			"uid 0:0:1,1:100000:65536 gid 0:0:1,1:100000:65536", "",
		},
		{
			"real root with host keeps all ids",
			Request{Mode: "host"},
			rootUser,
			host{direct: true, subUIDs: grant, subGIDs: grant},
			"uid 0:0:4294967295 gid 0:0:4294967295", "",
		},
		{
			"root of a container keeps the ranges that it has",
			Request{},
			rootUser,
			host{direct: true, parentUIDs: []Range{{0, 1000, 1}, {1, 100000, 65536}}, parentGIDs: []Range{{0, 1000, 1}}},
			"uid 0:0:1,1:1:65536 gid 0:0:1", "",
		},
		{
			"a grant is cut to what the container has",
			Request{},
			jane,
			host{subUIDs: grant, subGIDs: grant, parentUIDs: []Range{{0, 5, 100500}, {100500, 300000, 1000}}},
			"uid 0:1000:1,1:100000:500,501:100500:1000 gid 0:1000:1,1:100000:65536", "",
		},
		{
			"a grant outside of the container is none",
			Request{},
			jane,
			host{subUIDs: grant, subGIDs: grant, parentUIDs: []Range{{0, 5, 2000}}, parentGIDs: []Range{{0, 5, 2000}}},
			"uid 0:1000:1 gid 0:1000:1", "do not exist in this user namespace",
		},
		{
			"a capable user of a container shares its ids out",
			Request{},
			jane,
			host{direct: true, subUIDs: grant, parentUIDs: []Range{{0, 100000, 1000}, {1000, 1000, 1}, {1001, 101000, 9}}, parentGIDs: []Range{{1000, 1000, 1}}},
			"uid 0:1000:1,1:0:1000,1001:1001:9 gid 0:1000:1", "",
		},
		{
			"real root as another id has none but his own",
			Request{Mode: "keep-id", UID: ptr(7)},
			rootUser,
			host{direct: true},
			"uid 7:0:1 gid 0:0:1", "root has no subordinate uids",
		},
		{
			"a grant of the whole world stays within 32 bits",
			Request{},
			jane,
			host{subUIDs: []SubRange{{2000, 4294965295}}, subGIDs: grant},
			"uid 0:1000:1,1:2000:4294965295 gid 0:1000:1,1:100000:65536", "",
		},
		{
			"map takes what is granted",
			Request{Mode: "map", UIDs: []Range{{0, 100010, 10}, {50, 1000, 1}}},
			jane,
			host{subUIDs: grant, subGIDs: grant},
			"uid 0:100010:10,50:1000:1 gid 0:100010:10,50:1000:1", "",
		},
		{
			"map of the own id needs no grant",
			Request{Mode: "map", UIDs: []Range{{7, 1000, 1}}},
			jane,
			host{helpers: void},
			"uid 7:1000:1 gid 7:1000:1", "",
		},
		{
			"map beyond the grant",
			Request{Mode: "map", UIDs: []Range{{0, 165535, 2}}},
			jane,
			host{subUIDs: grant, subGIDs: grant},
			"error: not among the user's subordinate ids", "",
		},
		{
			"map without helpers",
			Request{Mode: "map", UIDs: []Range{{0, 100000, 2}}},
			jane,
			host{subUIDs: grant, subGIDs: grant, helpers: void},
			"error: newuidmap", "",
		},
		{
			"map that overlaps",
			Request{Mode: "map", UIDs: []Range{{0, 100000, 2}, {1, 100005, 1}}},
			jane,
			host{subUIDs: grant, subGIDs: grant},
			"error: overlap", "",
		},
		{"map of nothing", Request{Mode: "map"}, jane, host{}, "error: empty", ""},
		{
			"map of root across a border of the parent",
			Request{Mode: "map", UIDs: []Range{{0, 0, 2}}},
			rootUser,
			host{direct: true, parentUIDs: []Range{{0, 1000, 1}, {1, 100000, 65536}}},
			"error: not one range", "",
		},
		{"an unknown mode", Request{Mode: "magic"}, jane, host{}, `error: unknown mode "magic"`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.host.parentUIDs == nil {
				tc.host.parentUIDs = wholeHost
			}
			if tc.host.parentGIDs == nil {
				tc.host.parentGIDs = wholeHost
			}
			m, err := plan(tc.req, tc.id, tc.host)
			if part, ok := strings.CutPrefix(tc.want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Fatalf("got %v %v", m, err)
				}
				return
			}
			if err != nil || m.String() != tc.want || !strings.Contains(m.Note, tc.note) || (tc.note == "") != (m.Note == "") {
				t.Fatalf("got %q note %q err %v\nwant %q", m, m.Note, err, tc.want)
			}
		})
	}
}

func TestMapTranslates(t *testing.T) {
	m := Map{UIDs: []Range{{0, 1000, 1}, {1, 100000, 65536}}, GIDs: []Range{{0, 50, 1}}}
	if h, ok := m.ToHost(65536); h != 165535 || !ok {
		t.Error(h, ok)
	}
	if _, ok := m.ToHost(65537); ok || m.Contains(65537) || !m.Contains(0) || m.ContainsGID(1) {
		t.Error("65537 is not in the map")
	}
	if c, ok := m.FromHost(100004); c != 5 || !ok {
		t.Error(c, ok)
	}
	if m.Single() || !(Map{UIDs: one(0, 1), GIDs: one(0, 1)}).Single() {
		t.Error("single")
	}
	with := m
	with.Note = "x"
	if m.Key() != with.Key() || len(m.Key()) != 16 || m.Key() == (Map{UIDs: m.UIDs}).Key() {
		t.Error("key", m.Key())
	}
	if err := m.Require(3, 0); err != nil {
		t.Error(err)
	}
	if err := m.Require(3, 4); err == nil || cureOf(err) == "" {
		t.Error(err)
	}
}

func TestParseSubIDs(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []SubRange
		bad        bool
	}{
		{"by name", "bill:1:2\njane:100000:65536\n", []SubRange{{100000, 65536}}, false},
		{"by uid", "1000:100000:65536", []SubRange{{100000, 65536}}, false},
		{"a name that begins alike", "janet:1:2\n10001:1:2\n", nil, false},
		{"several ranges keep their order", "jane:300000:10\njane:100000:10\n", []SubRange{{300000, 10}, {100000, 10}}, false},
		{"the same by name and uid counts once", "jane:100000:65536\n1000:100000:65536\n", []SubRange{{100000, 65536}}, false},
		{"overlap counts once", "jane:100:10\njane:95:20\n", []SubRange{{100, 10}, {95, 5}, {110, 5}}, false},
		{"comments and blank lines", "# jane:1:2\n\n  \njane:5:6\n", []SubRange{{5, 6}}, false},
		{"an empty range", "jane:5:0\n", nil, false},
		{"others' bad lines", "bill:x\nfoo\n:::\n", nil, false},
		{"no numbers", "jane:a:b\n", nil, true},
		{"negative", "jane:-1:5\n", nil, true},
		{"too few fields", "jane:100000\n", nil, true},
		{"too many fields", "jane:1:2:3\n", nil, true},
		{"beyond 32 bits", "jane:4294967290:100\n", nil, true},
		{"a huge line", strings.Repeat("x", 1<<20), nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseSubIDs(strings.NewReader(tc.text), jane)
			if (err != nil) != tc.bad || (err == nil && !reflect.DeepEqual(got, tc.want)) {
				t.Fatalf("got %v %v, want %v", got, err, tc.want)
			}
		})
	}
}

func FuzzParseSubIDs(f *testing.F) {
	f.Add("jane:100000:65536\n1000:100000:65536\n# x\n")
	f.Add("jane:4294967295:1\njane:0:4294967295")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseSubIDs(strings.NewReader(text), jane)
		if err != nil {
			return
		}
		m, err := plan(Request{}, jane, host{subUIDs: got, subGIDs: got, parentUIDs: wholeHost, parentGIDs: wholeHost})
		if err != nil && len(got) < maxExtents-2 {
			t.Fatalf("a parsed grant %v has no plan: %v", got, err)
		}
		if host, ok := m.ToHost(0); err == nil && (host != 1000 || !ok) {
			t.Fatalf("root inside is %d", host)
		}
	})
}

func TestSubordinateSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	uid, gid := write("subuid", "jane:100:10\n"), write("subgid", "jane:200:20\n")
	exit := func(code string) error { return exec.Command("sh", "-c", "exit "+code).Run() }
	nss := func(uids string, err error) func(args ...string) ([]byte, error) {
		return func(args ...string) ([]byte, error) {
			if args[0] == "-g" {
				return []byte("0: jane 9000 9\n"), err
			}
			return []byte(uids), err
		}
	}
	for _, tc := range []struct {
		name, nsswitch string
		getsubids      func(args ...string) ([]byte, error)
		uids, gids     []SubRange
		bad            bool
	}{
		{"no nsswitch line", "passwd: files\n", nil, []SubRange{{100, 10}}, []SubRange{{200, 20}}, false},
		{"files by name", "subid: files\n", nil, []SubRange{{100, 10}}, []SubRange{{200, 20}}, false},
		{"a comment", "#subid: sss\n", nil, []SubRange{{100, 10}}, []SubRange{{200, 20}}, false},
		{"a module is asked alone", "subid: sss # x\n", nss("0: jane 7000 7\n1: jane 8000 8\n", nil), []SubRange{{7000, 7}, {8000, 8}}, []SubRange{{9000, 9}}, false},
		{"a module without a grant", "subid:\tsss\n", nss("", exit("1")), nil, nil, false},
		{"a module that fails", "subid: sss\n", nss("", exit("3")), nil, nil, true},
		{"a module that speaks in tongues", "subid: sss\n", nss("what\n", nil), nil, nil, true},
		{"no getsubids", "subid: sss\n", nss("", exec.ErrNotFound), []SubRange{{100, 10}}, []SubRange{{200, 20}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := sources{uid, gid, write("nsswitch.conf", tc.nsswitch), tc.getsubids}
			uids, gids, err := s.lookup(jane)
			if (err != nil) != tc.bad {
				t.Fatal(err)
			}
			if err == nil && (!reflect.DeepEqual(uids, tc.uids) || !reflect.DeepEqual(gids, tc.gids)) {
				t.Fatalf("got %v %v, want %v %v", uids, gids, tc.uids, tc.gids)
			}
		})
	}
	if u, g, err := (sources{dir + "/none", dir + "/none", dir + "/none", nil}).lookup(jane); u != nil || g != nil || err != nil {
		t.Error("absent files are an empty grant", u, g, err)
	}
}

func TestAFailedCloneIsExplained(t *testing.T) {
	ok := limits{kernelSupport: true, maxNamespaces: "15000"}
	for _, tc := range []struct {
		name   string
		errno  syscall.Errno
		change func(*limits)
		cause  string
		cure   string
	}{
		{"no support", unix.EINVAL, func(l *limits) { l.kernelSupport = false }, "this kernel has none", "CONFIG_USER_NS"},
		{"none allowed", unix.ENOSPC, func(l *limits) { l.maxNamespaces = "0" }, "user.max_user_namespaces is 0", "sysctl"},
		{"all used", unix.ENOSPC, func(*limits) {}, "too many", "sysctl -w user.max_user_namespaces=30000"},
		{"nested too deep", unix.EUSERS, func(*limits) {}, "32", ""},
		{"debian's switch", unix.EPERM, func(l *limits) { l.unprivClone = "0" }, "unprivileged_userns_clone", "sysctl"},
		{"docker's seccomp", unix.EPERM, func(l *limits) { l.seccomp = "2" }, "seccomp", "unconfined"},
		{"docker's seccomp and clone3", unix.ENOSYS, func(l *limits) { l.seccomp = "2" }, "seccomp", "unconfined"},
		{"chroot", unix.EPERM, func(l *limits) { l.chrooted = true }, "chroot", "pivot_root"},
		{"ubuntu", unix.EACCES, func(l *limits) { l.apparmorRestrict = "1" }, "AppArmor", "userns,"},
		{"who knows", unix.EPERM, func(*limits) {}, "security module", ""},
		{"no memory", unix.ENOMEM, func(*limits) {}, "start a process", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := ok
			tc.change(&l)
			err := explainClone(&os.PathError{Op: "fork/exec", Path: "x", Err: tc.errno}, l)
			if !errors.Is(err, tc.errno) || !strings.Contains(err.Error(), tc.cause) || !strings.Contains(cureOf(err), tc.cure) {
				t.Fatalf("%v / %s", err, cureOf(err))
			}
		})
	}
}
