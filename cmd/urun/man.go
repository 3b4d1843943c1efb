package main

import (
	"strings"

	"github.com/alecthomas/kong"
)

// manPage makes the man(7) page of a command, or of urun itself, from the parser's
// model, and its name.
func manPage(n *kong.Node) (name, text string) {
	m := &manWriter{}
	path := commandPath(n)
	name = strings.ReplaceAll(strings.TrimSpace("urun "+path), " ", "-")
	m.macro("TH", strings.ToUpper(name), "1", "", "urun "+version, "User Commands")
	m.macro("SH", "NAME")
	about := n.Help
	if path == "" {
		about = "containers for people who have no root"
	}
	m.line(name + ` \- ` + roff(strings.TrimSuffix(lowerFirst(about), ".")))
	m.macro("SH", "SYNOPSIS")
	m.synopsis(n, strings.TrimSpace("urun "+path))
	m.description(n, path)
	m.arguments(n)
	m.commands(n, name)
	m.options(n)
	if e := exampleOf(path); e != "" && len(n.Children) == 0 {
		m.macro("SH", "EXAMPLES")
		m.example(e)
	}
	m.ending(n, path)
	return name, m.b.String()
}

type manWriter struct{ b strings.Builder }

// macro writes a request with its arguments, each in quotes.
func (m *manWriter) macro(name string, args ...string) {
	m.b.WriteString("." + name)
	for _, a := range args {
		m.b.WriteString(` "` + strings.ReplaceAll(roff(a), `"`, `\(dq`) + `"`)
	}
	m.b.WriteByte('\n')
}

// line writes a line of text that is roff already, guarded where it looks like a request.
func (m *manWriter) line(s string) {
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		m.b.WriteString(`\&`)
	}
	m.b.WriteString(s + "\n")
}

// item writes what a text is about and the text.
func (m *manWriter) item(what, text string) {
	m.macro("TP")
	m.line(what)
	m.line(roff(text))
}

func (m *manWriter) example(command string) {
	m.macro("PP")
	m.macro("EX")
	m.line("$ " + roff(command))
	m.macro("EE")
}

// roff escapes a text.
func roff(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, "\n", " ", "µ", `\[mc]`, "…", "...").Replace(s)
}

func bold(s string) string   { return `\fB` + roff(s) + `\fR` }
func italic(s string) string { return `\fI` + roff(s) + `\fR` }

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

func (m *manWriter) synopsis(n *kong.Node, words string) {
	text := bold(words)
	if len(n.Children) > 0 {
		m.line(text + ` ` + italic("COMMAND") + ` [` + italic("OPTIONS") + `] [` + italic("ARGUMENTS") + `]`)
		return
	}
	text += " [" + italic("OPTIONS") + "]"
	for _, p := range n.Positional {
		arg := italic(strings.ToUpper(p.Name))
		if p.IsCumulative() {
			arg += "..."
		}
		if !p.Required {
			arg = "[" + arg + "]"
		}
		text += " " + arg
	}
	m.line(text)
}

func (m *manWriter) description(n *kong.Node, path string) {
	m.macro("SH", "DESCRIPTION")
	if path != "" {
		m.line(roff(n.Help))
		if len(n.Aliases) > 0 {
			m.macro("PP")
			m.line("Also called " + bold(strings.Join(n.Aliases, ", ")) + ".")
		}
		return
	}
	m.line(bold("urun") + roff(" runs containers as an ordinary user: no daemon, no program with special rights of its own, nothing to configure. Its commands and flags are docker's."))
}

func (m *manWriter) arguments(n *kong.Node) {
	first := true
	for _, p := range n.Positional {
		if p.Help == "" {
			continue
		}
		if first {
			m.macro("SH", "ARGUMENTS")
			first = false
		}
		m.item(italic(strings.ToUpper(p.Name)), p.Help)
	}
}

func (m *manWriter) commands(n *kong.Node, name string) {
	if len(n.Children) == 0 {
		return
	}
	m.macro("SH", "COMMANDS")
	for _, c := range n.Children {
		if !c.Hidden {
			m.item(bold(name+"-"+c.Name)+"(1)", c.Help)
		}
	}
}

// options lists the flags by their groups; those of all commands are in urun(1).
func (m *manWriter) options(n *kong.Node) {
	var order []string
	groups := map[string][]*kong.Flag{}
	for _, f := range n.Flags {
		if f.Hidden || f.Name == "help" {
			continue
		}
		title := ""
		if f.Group != nil {
			title = f.Group.Title
		}
		if _, ok := groups[title]; !ok {
			order = append(order, title)
		}
		groups[title] = append(groups[title], f)
	}
	if len(order) == 0 {
		return
	}
	m.macro("SH", "OPTIONS")
	for _, title := range order {
		if title != "" {
			m.macro("SS", title)
		}
		for _, f := range groups[title] {
			m.item(flagText(f), f.Help+defaultText(f))
		}
	}
}

func flagText(f *kong.Flag) string {
	text := bold("--" + f.Name)
	if f.Tag != nil && f.Tag.Negatable != "" {
		text = bold("--[no-]" + f.Name)
	}
	if f.Short != 0 {
		text = bold("-"+string(f.Short)) + ", " + text
	}
	if !f.IsBool() && !f.IsCounter() {
		text += "=" + italic(strings.Trim(f.FormatPlaceHolder(), `"`))
	}
	return text
}

func defaultText(f *kong.Flag) string {
	if f.Default == "" || f.IsBool() || strings.Contains(f.Help, f.Default) || strings.Contains(f.Help, "by default") {
		return ""
	}
	return " Default: " + f.Default + "."
}

// ending has what all pages end with.
func (m *manWriter) ending(n *kong.Node, path string) {
	m.macro("SH", "EXIT STATUS")
	switch path {
	case "run", "container run", "exec", "container exec":
		m.line(roff("That of the command, 128+n if signal n ended it; 125 for failures of urun itself, 126 for a command that cannot be executed, 127 for one that was not found."))
	default:
		m.line(roff("0, or another number if something failed; 125 for a command line that makes no sense."))
	}
	if path == "" {
		m.macro("SH", "ENVIRONMENT")
		m.item(bold("URUN_ROOT"), "Directory of images and containers, as with --root.")
		m.item(bold("URUN_STATE"), "Directory of containers, if not beside the images, as with --state.")
		m.item(bold("URUN_LINGER"), "How long what containers share stays ready after the last one, as with --linger.")
		m.item(bold("TERM"), "dumb keeps urun from drawing bars. Colours it has none.")
		m.macro("SH", "FILES")
		m.item(italic("~/.local/share/urun"), "Images, containers and volumes, unless XDG_DATA_HOME says otherwise.")
		m.item(italic("/etc/subuid")+", "+italic("/etc/subgid"), "The ranges of ids that containers may use besides the user's own.")
	}
	m.macro("SH", "SEE ALSO")
	if path == "" {
		m.line(bold("podman") + "(1), " + bold("newuidmap") + "(1), " + bold("user_namespaces") + "(7)")
		return
	}
	see := bold("urun") + "(1)"
	if n.Parent != nil && n.Parent.Type == kong.CommandNode {
		see += ", " + bold("urun-"+n.Parent.Name) + "(1)"
	}
	m.line(see)
}
