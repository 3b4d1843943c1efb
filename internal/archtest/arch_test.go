package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/urun-dev/urun"

var libraries = []string{"userns", "fuseunion", "slirp", "cgdelegate"}

// mayImport is the table of ARCHITECTURE.md: package -> what of ours it may import. A package below one of these
// follows its rule and may import its siblings. "*" is everything.
var mayImport = map[string][]string{
	"cmd/urun":           {"*"},
	"userns":             nil,
	"fuseunion":          nil,
	"slirp":              nil,
	"cgdelegate":         nil,
	"internal/archtest":  nil,
	"internal/image":     {"fuseunion"},
	"internal/spec":      nil,
	"internal/cure":      nil,
	"internal/batch":     nil,
	"internal/settings":  nil,
	"internal/program":   nil,
	"internal/seccomp":   {"internal/program"},
	"internal/state":     nil,
	"internal/volume":    nil,
	"internal/events":    nil,
	"internal/thrift":    nil,
	"internal/prefault":  nil,
	"internal/archive":   nil,
	"internal/unpacked":  {"fuseunion"},
	"internal/orphans":   nil,
	"internal/files":     {"fuseunion", "userns", "internal/archive", "internal/handoff", "internal/holder", "internal/monitor", "internal/rootfs", "internal/stage", "internal/state", "internal/unpacked"},
	"internal/handoff":   nil,
	"internal/jsonlog":   nil,
	"internal/rootfs":    nil,
	"internal/stage":     {"internal/handoff", "internal/holder/origin", "internal/program", "internal/rootfs", "internal/seccomp", "fuseunion", "slirp", "userns", "internal/unpacked"},
	"internal/doctor":    append([]string{"internal/cure", "internal/handoff"}, libraries...),
	"internal/monitor":   append([]string{"internal/cure", "internal/infra", "internal/network", "internal/events", "internal/handoff", "internal/program", "internal/holder", "internal/jsonlog", "internal/stage", "internal/state", "internal/rootfs", "internal/emulation", "internal/thrift", "internal/orphans"}, libraries...),
	"internal/emulation": {"fuseunion", "internal/program", "internal/seccomp"},
	"internal/launch":    {"internal/batch", "internal/infra", "internal/network", "userns", "cgdelegate", "slirp", "fuseunion", "internal/events", "internal/handoff", "internal/holder", "internal/jsonlog", "internal/monitor", "internal/seccomp", "internal/spec", "internal/stage", "internal/state", "internal/volume", "internal/unpacked"},
	"internal/network":   {"internal/state"},
	"internal/infra":     {"internal/handoff", "internal/network", "internal/state", "slirp"},
	"internal/ladder":    {"userns", "internal/doctor"},
	"internal/holder":    {"internal/thrift", "userns", "fuseunion", "cgdelegate", "internal/batch", "internal/handoff", "internal/rootfs", "internal/orphans"},
	"integration":        {"integration"},

	"internal/infra/server": {"internal/thrift", "internal/handoff", "internal/holder", "internal/infra", "internal/monitor", "internal/network", "internal/stage", "internal/state", "slirp"},

	"internal/imagemount": {"internal/handoff", "fuseunion", "userns"},
}

// onlyIn is: a module or package -> the packages of ours that alone may import it.
var onlyIn = map[string][]string{
	"github.com/hanwen/go-fuse":                   {"fuseunion", "integration/hardfs"},
	"github.com/google/nftables":                  {"slirp", "internal/infra/server"},
	"github.com/vishvananda/netlink":              {"internal/infra/server"},
	"github.com/godbus/dbus":                      {"cgdelegate"},
	"github.com/google/go-containerregistry":      {"internal/image"},
	"github.com/pelletier/go-toml":                {"internal/settings"},
	"tags.cncf.io/container-device-interface":     {"internal/spec"},
	"github.com/alecthomas/kong":                  {"cmd/urun"},
	"github.com/docker/docker-credential-helpers": {"internal/image", "cmd/urun"},
}

// notBelow is: a package -> the packages of ours that alone may have it among all that they link.
var notBelow = map[string][]string{
	"net/http":                               {"internal/image", "cmd/urun", "integration"},
	"github.com/google/go-containerregistry": {"internal/image", "cmd/urun"},
	"plugin":                                 nil,
	"runtime/cgo":                            nil,
}

type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string
	Deps       []string
	GoFiles    []string
	Error      *struct{ Err string }
}

// own gives a package's path within the module, or "".
func own(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	return rest
}

// within reports whether path is root or lies below it.
func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func withinAny(path string, roots []string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return within(path, r) })
}

// row finds the table's longest row for a package.
func row(path string) (string, bool) {
	best := ""
	for r := range mayImport {
		if within(path, r) && len(r) > len(best) {
			best = r
		}
	}
	return best, best != ""
}

// violations checks one package against all the tables.
func violations(p pkg) (bad []error) {
	path := own(p.ImportPath)
	r, ok := row(path)
	if !ok {
		return []error{fmt.Errorf("%s has no row in the table: give it one here and in ARCHITECTURE.md", path)}
	}
	for _, imp := range p.Imports {
		if o := own(imp); o != "" && !within(o, r) && !slices.Contains(mayImport[r], "*") && !withinAny(o, mayImport[r]) {
			bad = append(bad, fmt.Errorf("%s imports %s", path, o))
		}
		for what, allowed := range onlyIn {
			if within(imp, what) && !withinAny(path, allowed) {
				bad = append(bad, fmt.Errorf("%s imports %s: only %v may", path, imp, allowed))
			}
		}
	}
	for what, allowed := range notBelow {
		for _, dep := range p.Deps {
			if within(dep, what) && !withinAny(path, allowed) {
				bad = append(bad, fmt.Errorf("%s links %s: only %v may", path, dep, allowed))
				break
			}
		}
	}
	return bad
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Imports,Deps,GoFiles,Error", module+"/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as the Makefile builds
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < len(libraries) {
		t.Fatalf("go list found %d packages: not the module", len(pkgs))
	}
	return pkgs
}

func TestPackagesImportOnlyWhatTheTableAllows(t *testing.T) {
	for _, p := range list(t) {
		if p.Error != nil {
			t.Errorf("%s: %s", p.ImportPath, p.Error.Err)
			continue
		}
		for _, err := range violations(p) {
			t.Error(err)
		}
	}
}

// The libraries serve any program: they return errors, and neither print, log, exit nor run code at import.
func TestLibrariesDoNotPrintLogOrExit(t *testing.T) {
	checked := 0
	for _, p := range list(t) {
		path := own(p.ImportPath)
		if !withinAny(path, libraries) {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			checked++
			for _, err := range impolite(f) {
				t.Errorf("%s/%s: %v", path, name, err)
			}
		}
	}
	if checked == 0 {
		t.Fatal("no file of the libraries was checked")
	}
}

// impolite finds what a library must not do.
func impolite(f *ast.File) (bad []error) {
	banned := map[string][]string{
		"os": {"Exit", "Stdout", "Stderr", "Args"}, "fmt": {"Print", "Printf", "Println"}, "syscall": {"Exit"},
		// A *log.Logger of the caller's is fine: go-fuse takes one. The standard one is not.
		"log": {"Print", "Printf", "Println", "Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln", "Default", "SetOutput", "Output"},
	}
	names := map[string]string{} // local name -> import path
	for _, imp := range f.Imports {
		path, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		name := filepath.Base(path)
		if imp.Name != nil {
			name = imp.Name.Name
		}
		names[name] = path
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				bad = append(bad, errors.New("has an init function"))
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Obj == nil && slices.Contains(banned[names[x.Name]], n.Sel.Name) {
				bad = append(bad, fmt.Errorf("uses %s.%s", names[x.Name], n.Sel.Name))
			}
		}
		return true
	})
	return bad
}

// The rules themselves are tried on packages that break them: a rule that finds nothing is no rule.
func TestRulesFindWhatBreaksThem(t *testing.T) {
	for name, p := range map[string]pkg{
		"a library imports internal":        {ImportPath: module + "/slirp", Imports: []string{module + "/internal/handoff"}},
		"a part of a library does":          {ImportPath: module + "/slirp/dns", Imports: []string{module + "/internal/handoff"}},
		"go-fuse elsewhere":                 {ImportPath: module + "/internal/stage", Imports: []string{"github.com/hanwen/go-fuse/v2/fuse"}},
		"kong elsewhere":                    {ImportPath: module + "/internal/spec", Imports: []string{"github.com/alecthomas/kong"}},
		"HTTP below":                        {ImportPath: module + "/internal/monitor", Deps: []string{"net/http"}},
		"a package without a row":           {ImportPath: module + "/internal/util"},
		"the command in something else":     {ImportPath: module + "/internal/monitor", Imports: []string{module + "/cmd/urun"}},
		"integration imports what it tests": {ImportPath: module + "/integration/x", Imports: []string{module + "/internal/image"}},
	} {
		if len(violations(p)) == 0 {
			t.Errorf("%s: not found", name)
		}
	}
	fine := pkg{ImportPath: module + "/internal/image", Imports: []string{module + "/fuseunion", "net/http"}, Deps: []string{"net/http"}}
	if bad := violations(fine); len(bad) > 0 {
		t.Errorf("a package that keeps the rules: %v", bad)
	}

	src := "package p\nimport (\n\"log\"\n\"os\"\n\"fmt\"\n)\nfunc init() { fmt.Println(os.Args); log.Print(); os.Exit(1) }\n"
	f, err := parser.ParseFile(token.NewFileSet(), "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	if bad := impolite(f); len(bad) != 5 {
		t.Errorf("found %d of 5: %v", len(bad), bad)
	}
}
