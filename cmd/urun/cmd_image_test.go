package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// imageCLI runs image commands on a store of its own, the way a person does.
type imageCLI struct {
	t    *testing.T
	root string
	dir  string
}

func newImageCLI(t *testing.T) *imageCLI {
	t.Helper()
	dir := t.TempDir()
	for _, v := range []string{"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_AUTH_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"} {
		t.Setenv(v, "")
	}
	t.Setenv("HOME", dir)
	return &imageCLI{t: t, root: filepath.Join(dir, "store"), dir: dir}
}

// run gives what the command printed, and its exit status.
func (c *imageCLI) run(stdin string, args ...string) (stdout, stderr string, status int) {
	c.t.Helper()
	var out, errs bytes.Buffer
	status = run(append([]string{"--root", c.root}, args...), strings.NewReader(stdin), &out, &errs)
	return out.String(), errs.String(), status
}

// ok is run for a command that must work.
func (c *imageCLI) ok(args ...string) string {
	c.t.Helper()
	out, errs, status := c.run("", args...)
	if status != 0 {
		c.t.Fatalf("urun %s: status %d: %s", strings.Join(args, " "), status, errs)
	}
	return out
}

// fails is run for a command that must not.
func (c *imageCLI) fails(want string, args ...string) {
	c.t.Helper()
	out, errs, status := c.run("", args...)
	if status == 0 || !strings.Contains(errs, want) || !strings.HasPrefix(errs, "urun: ") && !strings.Contains(errs, "\nurun: ") {
		c.t.Errorf("urun %s: status %d, out %q, err %q, want %q", strings.Join(args, " "), status, out, errs, want)
	}
}

func (c *imageCLI) rootfs(name string, files ...string) string {
	c.t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			c.t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		c.t.Fatal(err)
	}
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, buf.Bytes(), 0o644); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func TestImageCommandsFromImportToPrune(t *testing.T) {
	c := newImageCLI(t)
	id := strings.TrimSpace(c.ok("import", "-c", `CMD ["/bin/sh", "-l"]`, "-c", "LABEL who=me", "-m", "made", c.rootfs("r.tar", "etc/a", "x"), "app:1"))
	if !regexp.MustCompile(`^sha256:[0-9a-f]{64}$`).MatchString(id) {
		t.Fatalf("import prints %q", id)
	}
	short := id[7:19]
	c.ok("tag", "app:1", "app:2", "quay.io/x/app")

	table := c.ok("images")
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if len(lines) != 4 || strings.Join(strings.Fields(lines[0]), " ") != "REPOSITORY TAG IMAGE ID CREATED SIZE" || !strings.HasPrefix(lines[1], "app ") {
		t.Errorf("images prints\n%s", table)
	}
	for _, tt := range []struct {
		want string
		args []string
	}{
		{short + "\n", []string{"images", "-q"}},
		{id + "\n", []string{"images", "-q", "--no-trunc"}},
		{"app:1\napp:2\nquay.io/x/app:latest\n", []string{"images", "--format", "{{.Repository}}:{{.Tag}}"}},
		{"1\n2\n", []string{"images", "--format", "{{.Tag}}", "app"}},
		{"2\n", []string{"images", "--format", "{{.Tag}}", "app:2"}},
		{"latest\n", []string{"image", "ls", "--format", "{{.Tag}}", "--filter", "reference=quay.io/*/*"}},
		{"", []string{"images", "-q", "-f", "dangling=true"}},
		{short + "\n", []string{"images", "-q", "-f", "label=who=me"}},
		{"", []string{"images", "-q", "-f", "label=who=you"}},
		{"TAG   REPOSITORY\n1     app\n", []string{"images", "--format", `table {{.Tag}}\t{{.Repository}}`, "app:1"}},
		{"[/bin/sh -l] made\n", []string{"image", "inspect", "-f", "{{.Config.Cmd}} {{.Comment}}", "app:1"}},
		{`["/bin/sh","-l"]` + "\n", []string{"image", "inspect", "-f", "{{json .Config.Cmd}}", short}},
	} {
		if got := c.ok(tt.args...); got != tt.want {
			t.Errorf("urun %s prints %q, want %q", strings.Join(tt.args, " "), got, tt.want)
		}
	}
	var row struct{ ID, Repository, Tag string }
	if err := json.Unmarshal([]byte(c.ok("images", "--format", "json", "app:1")), &row); err != nil || row.ID != short || row.Tag != "1" {
		t.Errorf("row is %+v, %v", row, err)
	}
	var details []struct {
		ID       string `json:"Id"`
		RepoTags []string
		Config   struct{ Labels map[string]string }
	}
	if err := json.Unmarshal([]byte(c.ok("image", "inspect", "app:1")), &details); err != nil || len(details) != 1 || details[0].ID != id || len(details[0].RepoTags) != 3 {
		t.Errorf("details are %+v, %v", details, err)
	}

	c.fails("it has 3 names", "rmi", short)
	if got := c.ok("rmi", "app:1", "app:2"); got != "Untagged: app:1\nUntagged: app:2\n" {
		t.Errorf("rmi prints %q", got)
	}
	if got := c.ok("rmi", "quay.io/x/app"); got != "Untagged: quay.io/x/app:latest\nDeleted: "+id+"\n" {
		t.Errorf("rmi prints %q", got)
	}
	c.fails("no such image", "rmi", "app:1")
	c.ok("rmi", "-f", "app:1")

	c.ok("import", c.rootfs("s.tar", "b", "y"))
	if got := c.ok("image", "prune"); !strings.Contains(got, "Deleted: sha256:") || !strings.Contains(got, "Total reclaimed space: ") {
		t.Errorf("prune prints %q", got)
	}
	if got := c.ok("images", "-q"); got != "" {
		t.Errorf("left: %q", got)
	}
}

func TestSaveAndLoad(t *testing.T) {
	c := newImageCLI(t)
	c.ok("import", c.rootfs("r.tar", "etc/a", "x"), "app:1")
	c.ok("import", c.rootfs("s.tar", "etc/b", "y"), "other")
	for _, format := range []string{"docker-archive", "oci-archive"} {
		file := filepath.Join(c.dir, format+".tar")
		c.ok("save", "-o", file, "--format", format, "app:1", "other")
		loader := *c
		loader.root = filepath.Join(c.dir, "store-"+format)
		if got := loader.ok("load", "-q", "-i", file); got != "Loaded image: app:1\nLoaded image: other:latest\n" {
			t.Errorf("load prints %q", got)
		}
		if got, want := loader.ok("images", "-q", "app"), c.ok("images", "-q", "app"); got != want {
			t.Errorf("id is %q, not %q", got, want)
		}
		out, _, status := c.run("", "save", "--format", format, "app:1")
		piped, err := os.ReadFile(file)
		if status != 0 || err != nil || len(out) == 0 || len(out) >= len(piped) {
			t.Errorf("save to standard output: %d bytes, status %d", len(out), status)
		}
	}
	layout := filepath.Join(c.dir, "layout")
	c.ok("save", "--format", "oci-dir", "-o", layout, "app:1")
	if got := c.ok("pull", "-q", "oci:"+layout+":1"); !strings.Contains(got, c.ok("images", "-q", "--no-trunc", "app")[7:19]) {
		t.Errorf("pull prints %q", got)
	}
	file := filepath.Join(c.dir, "none.tar")
	c.fails("no such image", "save", "-o", file, "nothing")
	if _, err := os.Stat(file); err == nil {
		t.Error("a save that failed leaves a file")
	}
	c.fails("oci-dir wants a directory", "save", "--format", "oci-dir", "app:1")
	c.fails("neither a docker archive nor an OCI archive", "load", "-i", filepath.Join(c.dir, "r.tar"))
	c.fails("no such file", "load", "-i", filepath.Join(c.dir, "nothing"))
}

func TestPullPrintsForPeopleAndPrograms(t *testing.T) {
	c := newImageCLI(t)
	id := strings.TrimPrefix(strings.TrimSpace(c.ok("import", c.rootfs("r.tar", "a", "x"), "app:1")), "sha256:")
	layout := filepath.Join(c.dir, "layout")
	c.ok("save", "--format", "oci-dir", "-o", layout, "app:1")
	c.ok("rmi", "app:1")

	out, errs, status := c.run("", "pull", "oci:"+layout)
	if status != 0 || out != id+"\n" || !strings.Contains(errs, "pulling oci:") || !strings.Contains(errs, ": done") || strings.Contains(errs, "\x1b") {
		t.Errorf("status %d, out %q, err %q", status, out, errs)
	}
	out, errs, _ = c.run("", "pull", "--quiet", "oci:"+layout)
	if out != id+"\n" || errs != "" {
		t.Errorf("--quiet: out %q, err %q", out, errs)
	}
	out, errs, _ = c.run("", "pull", "--json", "oci:"+layout)
	last := ""
	for line := range strings.Lines(out) {
		var e struct{ Event, ID string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Event == "" {
			t.Errorf("line %q: %v", line, err)
		}
		last = e.Event + " " + e.ID
	}
	if last != "image sha256:"+id || errs != "" {
		t.Errorf("--json: last event %q, err %q", last, errs)
	}
	c.fails("no such image", "pull", "--policy", "never", "nothing")
	c.fails("has no image", "pull", "oci:"+layout+":nothing")
	c.fails("", "pull", "-q", "--json", "oci:"+layout)
	c.fails("", "pull", "--platform", "a/b/c/d", "oci:"+layout)
}

func TestLoginAndLogout(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "pw" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	c := newImageCLI(t)
	for _, tt := range []struct {
		name, stdin string
		args        []string
		want        string // of an error; "" for success
	}{
		{"a password from standard input", "pw\n", []string{"-u", "ann", "--password-stdin"}, ""},
		{"a password as a flag", "", []string{"-u", "ann", "-p", "pw"}, ""},
		{"both asked for", "ann\npw\n", nil, ""},
		{"a wrong password", "no", []string{"-u", "ann", "--password-stdin"}, "wrong user name or password"},
		{"no user name with --password-stdin", "pw", []string{"--password-stdin"}, "wants --username"},
		{"no password", "", []string{"-u", "ann", "--password-stdin"}, "must not be empty"},
		{"nothing to read", "", nil, "user name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, errs, status := c.run(tt.stdin, append([]string{"login", host}, tt.args...)...)
			if tt.want == "" && (status != 0 || out != "Login Succeeded\n") || tt.want != "" && (status == 0 || !strings.Contains(errs, tt.want)) {
				t.Errorf("status %d, out %q, err %q", status, out, errs)
			}
		})
	}
	if got := c.ok("logout", host); got != "Removed login credentials for "+host+"\n" {
		t.Errorf("logout prints %q", got)
	}
	if got := c.ok("logout", host); got != "Not logged in to "+host+"\n" {
		t.Errorf("logout prints %q", got)
	}
}
