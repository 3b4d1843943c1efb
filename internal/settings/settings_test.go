package settings

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheUsersFileGoesFirstAndListsAddUp(t *testing.T) {
	system := write(t, "system.toml", "bind = ['/scratch']\nhome = true\nhpc = true\nenv = ['MODULE*']\nstorage = 'overlay'\nwritable = 'tmpfs'\n")
	user := write(t, "user.toml", "bind = ['/data:/d:ro']\nhome = false\nuserns = 'auto'\nnetwork = 'host'\n")
	got, err := Load([]string{system, filepath.Join(t.TempDir(), "missing"), user})
	if err != nil {
		t.Fatal(err)
	}
	want := Settings{
		Bind: []Value[string]{{"/scratch", system}, {"/data:/d:ro", user}},
		Env:  []Value[string]{{"MODULE*", system}},
		Home: Value[bool]{false, user}, HPC: Value[bool]{true, system},
		UserNS: Value[string]{"auto", user}, Storage: Value[string]{"overlay", system}, Writable: Value[string]{"tmpfs", system}, Network: Value[string]{"host", user},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestMistakesNameFileAndLine(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"home = true\nbnid = ['/x']\n", ":2: unknown key \"bnid\""},
		{"\n\n[run]\nhpc = true\n", ":3: unknown key \"run"},
		{"hpc = 'yes'\n", ":1: "},
		{"home = true\nbind = [\n", ":2: "},
	} {
		path := write(t, "config.toml", c.text)
		_, err := Load([]string{path})
		if err == nil || !strings.Contains(err.Error(), path+c.want) {
			t.Errorf("%q: got %v, want an error that names %s%s", c.text, err, path, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: the error has several lines: %v", c.text, err)
		}
	}
}

func TestAFileThatCannotBeReadIsAnError(t *testing.T) {
	if _, err := Load([]string{t.TempDir()}); err == nil {
		t.Error("a directory is taken for a file")
	}
}
