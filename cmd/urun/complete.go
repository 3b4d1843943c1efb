package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/volume"
)

// completeCommand is the hidden command that the completion scripts call, with
// the words of the line up to the one that is to be completed. It answers with a
// candidate a line, a tab and what it is behind it; :files or :dirs asks the shell
// for names of files. It changes nothing, and says nothing of errors.
const completeCommand = "__complete"

// Answers that the shell takes from here.
const (
	completeFiles = ":files"
	completeDirs  = ":dirs"
)

// complete prints the candidates for the last of the words.
func complete(words []string, w io.Writer) {
	if len(words) == 0 {
		words = []string{""}
	}
	parser, err := newParser(grammar(words), io.Discard, io.Discard, func(int) {})
	if err != nil {
		return
	}
	c := &completion{node: parser.Model.Node, last: words[len(words)-1]}
	c.walk(words[:len(words)-1])
	for _, line := range c.candidates() {
		fmt.Fprintln(w, line)
	}
}

type completion struct {
	node  *kong.Node // the command so far
	last  string     // what is to be completed
	flag  *kong.Flag // whose value that is, or nil
	args  []string   // arguments of the command so far
	flags []usedFlag // that came so far, of every command on the way
	ended bool       // no more flags
}

// usedFlag is a flag of the line, with its value if it takes one.
type usedFlag struct {
	flag  *kong.Flag
	name  string // as it was written: an alias, or no-...
	value string
	given bool // a value was
}

// word is the flag as one word, by its long name.
func (f usedFlag) word() string {
	if f.given {
		return "--" + f.name + "=" + f.value
	}
	return "--" + f.name
}

// walk goes through words.
func (c *completion) walk(words []string) {
	for i := 0; i < len(words); i++ {
		word := words[i]
		if c.ended || !strings.HasPrefix(word, "-") || word == "-" {
			c.word(word)
			continue
		}
		if word == "--" {
			c.ended = true
			continue
		}
		used := c.parseFlags(word)
		c.flags = append(c.flags, used...)
		if len(used) == 0 {
			continue // unknown
		}
		last := &c.flags[len(c.flags)-1]
		if takesNothing(last.flag) || last.given {
			continue
		}
		if i+1 == len(words) {
			c.flag = last.flag
			return
		}
		i++
		last.value, last.given = words[i], true
	}
}

// word takes a command or an argument.
func (c *completion) word(word string) {
	for _, child := range c.node.Children {
		if len(c.args) == 0 && (child.Name == word || slices.Contains(child.Aliases, word)) {
			c.node = child
			return
		}
	}
	c.args = append(c.args, word)
	for _, p := range c.node.Positional {
		// What is behind the image of run, and the container of exec, is a command line.
		if p.PassthroughMode != kong.PassThroughModeNone && len(c.args) > p.Position {
			c.ended = true
		}
	}
}

// parseFlags takes a word of flags apart: a long one, or letters, of which the last
// may take the rest of the word. Those that are unknown are left out.
func (c *completion) parseFlags(word string) []usedFlag {
	if name, ok := strings.CutPrefix(word, "--"); ok {
		name, value, given := strings.Cut(name, "=")
		f := c.findFlag(func(f *kong.Flag) bool {
			return f.Name == name || slices.Contains(f.Aliases, name) || f.Tag.Negatable != "" && "no-"+f.Name == name
		})
		if f == nil {
			return nil
		}
		return []usedFlag{{f, name, value, given}}
	}
	var all []usedFlag
	letters := []rune(word[1:])
	for i, r := range letters {
		f := c.findFlag(func(f *kong.Flag) bool { return f.Short == r })
		if f == nil {
			continue
		}
		if !takesNothing(f) {
			rest := string(letters[i+1:])
			return append(all, usedFlag{f, f.Name, strings.TrimPrefix(rest, "="), rest != ""})
		}
		all = append(all, usedFlag{flag: f, name: f.Name})
	}
	return all
}

func takesNothing(f *kong.Flag) bool { return f.IsBool() || f.IsCounter() }

func (c *completion) findFlag(is func(*kong.Flag) bool) *kong.Flag {
	for _, group := range c.node.AllFlags(false) {
		for _, f := range group {
			if is(f) {
				return f
			}
		}
	}
	return nil
}

// candidates are what the last word may become.
func (c *completion) candidates() []string {
	if c.flag != nil {
		return match(c.last, "", c.flagValues(c.flag, c.last))
	}
	if name, value, ok := strings.Cut(c.last, "="); ok && strings.HasPrefix(name, "--") && !c.ended {
		if used := c.parseFlags(name); len(used) == 1 {
			return match(value, name+"=", c.flagValues(used[0].flag, value))
		}
	}
	switch {
	case strings.HasPrefix(c.last, "-") && !c.ended:
		return match(c.last, "", c.flagNames())
	case len(c.node.Children) > 0:
		var all []string
		for _, child := range c.node.Children {
			if !child.Hidden {
				all = append(all, child.Name+"\t"+child.Help)
			}
		}
		return match(c.last, "", all)
	}
	return match(c.last, "", c.arguments())
}

// match keeps those that begin with what is there already. The prefix is a part of
// the word in front of what is completed.
func match(begun, prefix string, all []string) []string {
	var kept []string
	for _, line := range all {
		if strings.HasPrefix(line, begun) || line == completeFiles || line == completeDirs {
			if line != completeFiles && line != completeDirs {
				line = prefix + line
			}
			kept = append(kept, line)
		}
	}
	return kept
}

func (c *completion) flagNames() []string {
	var all []string
	for _, group := range c.node.AllFlags(true) {
		for _, f := range group {
			all = append(all, "--"+f.Name+"\t"+f.Help)
		}
	}
	return all
}

// flagWords are the words that a flag's value may be.
var flagWords = map[string]string{
	"cgroupns": "private host container:", "ipc": "private host container:", "pid": "private host container:", "uts": "private host container:",
	"cgroups": "try enforce disabled", "log-driver": "json-file none", "log-level": "debug info warn error",
	"network": "slirp none host container:", "pull": "missing always never newer", "policy": "always missing never",
	"restart": "no on-failure always unless-stopped", "storage": "auto overlay fuse", "root-emulation": "auto on off",
	"userns": "auto host keep-id single map: container:", "format": "json table", "type": "container image volume",
	"signal": "HUP INT QUIT KILL TERM USR1 USR2 STOP CONT", "stop-signal": "HUP INT QUIT KILL TERM USR1 USR2",
	"platform": "linux/amd64 linux/arm64", "restart-policy": "no on-success on-failure on-abnormal on-abort always",
}

// fileFlags take names of files, dirFlags of directories.
var (
	fileFlags = []string{"env-file", "label-file", "cidfile", "output", "input", "device"}
	dirFlags  = []string{"root", "rootfs", "state"}
)

// flagValues are what a flag's value may be.
func (c *completion) flagValues(f *kong.Flag, begun string) []string {
	switch {
	case f.Enum != "":
		return slices.DeleteFunc(strings.Split(f.Enum, ","), func(s string) bool { return s == "" })
	case slices.Contains(fileFlags, f.Name):
		return []string{completeFiles}
	case slices.Contains(dirFlags, f.Name):
		return []string{completeDirs}
	case f.Name == "volume":
		return append(suffixed(c.volumes(), ":"), completeFiles)
	}
	all := strings.Fields(flagWords[f.Name])
	if _, shared := strings.CutPrefix(begun, "container:"); shared {
		return prefixed("container:", c.containers(func(rec *state.Record) bool { return isUp(rec) }))
	}
	if f.Name == "network" {
		all = append(all, c.networks()...)
	}
	return all
}

// arguments are what the next argument of the command may be.
func (c *completion) arguments() []string {
	var arg *kong.Positional
	for _, p := range c.node.Positional {
		if p.Position == len(c.args) || p.Position < len(c.args) && p.IsCumulative() && p.PassthroughMode == kong.PassThroughModeNone {
			arg = p
		}
	}
	if c.ended && len(c.args) > 0 {
		return []string{completeFiles} // the command inside: the host's names are as good as any
	}
	if arg == nil {
		return nil
	}
	path := commandPath(c.node)
	switch strings.ToLower(arg.Name) {
	case "container", "containers":
		return c.without(c.containers(fitFor(c.node.Name)))
	case "image", "images", "source":
		return c.without(c.images())
	case "volume", "volumes":
		return c.without(c.volumes())
	case "network", "networks":
		return c.without(c.networks())
	case "name":
		if path == "inspect" {
			return c.without(slices.Concat(c.containers(nil), c.images(), c.volumes()))
		}
		if path == "rename" {
			return c.containers(nil)
		}
	case "src", "dst":
		return append(suffixed(c.containers(nil), ":"), completeFiles)
	case "file", "dir", "directory":
		return []string{completeFiles}
	}
	if arg.Enum != "" {
		return strings.Split(arg.Enum, ",")
	}
	return nil
}

// fitFor tells which containers a command is for.
func fitFor(command string) func(*state.Record) bool {
	switch command {
	case "stop", "kill", "exec", "attach", "top", "port", "pause", "stats":
		return isUp
	case "unpause":
		return func(rec *state.Record) bool { return shownStatus(rec) == state.Paused }
	case "start":
		return func(rec *state.Record) bool { return !isUp(rec) }
	}
	return nil
}

// without leaves out what is on the line already.
func (c *completion) without(all []string) []string {
	return slices.DeleteFunc(all, func(line string) bool {
		name, _, _ := strings.Cut(line, "\t")
		return slices.Contains(c.args, name)
	})
}

// app is for looking at the stores.
func (c *completion) app() *App {
	root, state := os.Getenv("URUN_ROOT"), os.Getenv("URUN_STATE")
	for _, f := range c.flags {
		switch f.flag.Name {
		case "root":
			root = f.value
		case "state":
			state = f.value
		}
	}
	if root == "" {
		root = defaultRoot()
	}
	if abs, err := filepath.Abs(root); err == nil {
		root = abs
	}
	return &App{Root: root, State: state, Stdout: io.Discard, Stderr: io.Discard}
}

func (c *completion) containers(fit func(*state.Record) bool) []string {
	root := c.app().stateRoot()
	// Opening a store would make one.
	if _, err := os.Stat(filepath.Join(root, "containers")); err != nil {
		return nil
	}
	st, err := state.Open(root)
	if err != nil {
		return nil
	}
	recs, err := st.List()
	if err != nil {
		return nil
	}
	var all []string
	for _, rec := range recs {
		if fit == nil || fit(rec) {
			all = append(all, rec.Name+"\t"+rec.Image+", "+statusText(rec))
		}
	}
	return all
}

func (c *completion) images() []string {
	store, err := image.Open(image.Options{Root: c.app().Root, ReadOnly: true})
	if err != nil {
		return nil
	}
	images, err := store.List()
	if err != nil {
		return nil
	}
	var all []string
	for _, img := range images {
		for _, name := range img.Names {
			if r, err := image.ParseReference(name); err == nil {
				all = append(all, r.Familiar()+"\t"+humanSize(img.Size))
			}
		}
	}
	slices.Sort(all)
	return all
}

func (c *completion) volumes() []string {
	vs, err := volume.Open(c.app().stateRoot()).List()
	if err != nil {
		return nil
	}
	var all []string
	for _, v := range vs {
		all = append(all, v.Name)
	}
	return all
}

// networks are the networks' names, which are those of their directories.
func (c *completion) networks() []string {
	entries, err := os.ReadDir(filepath.Join(c.app().stateRoot(), "networks"))
	if err != nil {
		return nil
	}
	var all []string
	for _, e := range entries {
		if name := strings.TrimSuffix(e.Name(), ".json"); !strings.HasPrefix(name, ".") {
			all = append(all, name)
		}
	}
	return all
}

func prefixed(prefix string, all []string) []string {
	for i := range all {
		all[i] = prefix + all[i]
	}
	return all
}

func suffixed(all []string, suffix string) []string {
	for i := range all {
		name, what, _ := strings.Cut(all[i], "\t")
		all[i] = name + suffix
		if what != "" {
			all[i] += "\t" + what
		}
	}
	return all
}
