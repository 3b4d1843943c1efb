package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// leaves calls f for every command that is not a group.
func leaves(t *testing.T, f func(n *kong.Node)) {
	t.Helper()
	parser, err := newParser(reflect.New(reflect.TypeFor[cli]()), io.Discard, io.Discard, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := kong.Visit(parser.Model.Node, func(v kong.Visitable, next kong.Next) error {
		if n, ok := v.(*kong.Node); ok && len(n.Children) == 0 {
			f(n)
		}
		return next(nil)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestEveryCommandHasAnExampleThatItTakes(t *testing.T) {
	leaves(t, func(n *kong.Node) {
		path := commandPath(n)
		e := exampleOf(path)
		if e == "" {
			t.Errorf("urun %s has no example: give it one in examples.go", path)
			return
		}
		// What the shell would make of it, so far as it matters here.
		line, _, _ := strings.Cut(strings.TrimPrefix(e, "urun "), " > ")
		words := strings.Fields(strings.NewReplacer("'", "", `"`, "").Replace(line))
		if strings.Contains(e, "'") {
			return // quoted words with spaces in them
		}
		c := grammar(words)
		parser, err := newParser(c, io.Discard, io.Discard, func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(words); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	})
}

func TestHelpTextsAreSentences(t *testing.T) {
	leaves(t, func(n *kong.Node) {
		if !strings.HasSuffix(n.Help, ".") {
			t.Errorf("urun %s: %q", commandPath(n), n.Help)
		}
		for _, f := range n.Flags {
			if f.Help == "" || !strings.HasSuffix(f.Help, ".") {
				t.Errorf("urun %s --%s: %q", commandPath(n), f.Name, f.Help)
			}
		}
	})
}

func TestManPagesAreClean(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	if status := run([]string{"generate", "man", dir}, strings.NewReader(""), &out, &errs); status != 0 {
		t.Fatal(errs.String())
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) < 40 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, p := range []string{"urun.1", "urun-run.1", "urun-volume-create.1"} {
		raw, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{".TH ", `.SH "NAME"`, `.SH "SYNOPSIS"`, `.SH "OPTIONS"`, `.SH "SEE ALSO"`} {
			if !bytes.Contains(raw, []byte(want)) {
				t.Errorf("%s has no %s", p, want)
			}
		}
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		return // the pages' form is looked at where groff is; what they hold is tested everywhere
	}
	warnings, err := exec.Command(groff, append([]string{"-man", "-Tutf8", "-ww", "-z"}, pages...)...).CombinedOutput()
	if err != nil || len(warnings) > 0 {
		t.Errorf("%v\n%.2000s", err, warnings)
	}
}

func TestCompletion(t *testing.T) {
	root := t.TempDir()
	t.Setenv("URUN_ROOT", root)
	var out, errs bytes.Buffer
	for _, name := range []string{"data", "database"} {
		if status := run([]string{"volume", "create", name}, strings.NewReader(""), &out, &errs); status != 0 {
			t.Fatal(errs.String())
		}
	}
	for _, c := range []struct {
		line string // with a space at the end if the last word is empty
		want []string
	}{
		{"vol", []string{"volume"}},
		{"volume r", []string{"rm"}},
		{"volume rm ", []string{"data", "database"}},
		{"volume rm data d", []string{"database"}},
		{"--root " + root + " volume inspect datab", []string{"database"}},
		{"run --pu", []string{"--publish", "--publish-all", "--pull"}},
		{"run --pull n", []string{"never", "newer"}},
		{"run --pull=n", []string{"--pull=never", "--pull=newer"}},
		{"run -v data", []string{"data:", "database:", ":files"}},
		{"run -itv datab", []string{"database:", ":files"}},
		{"run -itv datab ", nil},
		{"run -v ", []string{"data:", "database:", ":files"}},
		{"run --rm image --na", []string{":files"}},
		{"run --env-file ", []string{":files"}},
		{"rm nosuch", nil},
		{"cp ", []string{":files"}},
		{"completion ", []string{"bash", "zsh", "fish"}},
		{"completion z", []string{"zsh"}},
		{"events --filter ", nil},
	} {
		words := strings.Split(c.line, " ")
		var b bytes.Buffer
		complete(words, &b)
		var got []string
		for line := range strings.Lines(b.String()) {
			value, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			got = append(got, value)
		}
		if strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("%q: %q, want %q", c.line, got, c.want)
		}
	}
}

func TestCompletionMakesNothing(t *testing.T) {
	root := filepath.Join(t.TempDir(), "none")
	t.Setenv("URUN_ROOT", root)
	for _, line := range []string{"rm ", "run ", "volume rm ", "image rm ", "inspect "} {
		complete(strings.Split(line, " "), io.Discard)
	}
	if _, err := os.Stat(root); err == nil {
		t.Error("a store was made")
	}
}

func TestUnitWords(t *testing.T) {
	for word, want := range map[string]string{
		"plain": "plain", "a b": `"a b"`, "": `""`, `q"q`: `"q\"q"`, "50%": "50%%", "$HOME": "$$HOME", `b\s`: `"b\\s"`, "a;b": `"a;b"`, "l\nl": `"l\nl"`,
	} {
		if got := unitWord(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}

func TestTheParserIsMadeForOneCommand(t *testing.T) {
	all := reflect.TypeFor[cli]()
	for line, want := range map[string]string{
		"ps":                                  "ps",
		"--root /x ps --root y":               "ps",
		"--root=/x --debug --linger 1m ps -a": "ps",
		"--state ps images":                   "images",
		"--debug":                             "",
		"--root":                              "",
		"--nosuch ps":                         "",
		"--version ps":                        "", // a command's name
		"-h":                                  "-h",
	} {
		words := strings.Fields(line)
		if got := commandWord(all, words); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
		if c := grammar(words); (c.Elem().Type() == all) == (want == "ps" || want == "images") {
			t.Errorf("%s: a parser of %v", line, c.Elem().Type())
		}
	}
}
