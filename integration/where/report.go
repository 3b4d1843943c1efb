package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// parseAttempt reads a line of the job: name, status, output and complaints, the last two in base64.
func parseAttempt(line string) (name string, a attempt, err error) {
	f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
	if len(f) != 4 {
		return "", a, fmt.Errorf("the job said %q", line)
	}
	if a.Status, err = strconv.Atoi(f[1]); err != nil {
		return "", a, err
	}
	for i, into := range []*string{&a.Out, &a.Errors} {
		data, err := base64.StdEncoding.DecodeString(f[2+i])
		if err != nil {
			return "", a, err
		}
		*into = strings.TrimSpace(string(data))
	}
	return f[0], a, nil
}

func (a attempt) works() bool { return a.Status == 0 && strings.HasPrefix(a.Out, "works") }

// verdict is a cell of the table: yes with what is not as elsewhere, or no with the reason.
func (a attempt) verdict() string {
	lines := strings.Split(a.Errors, "\n")
	if a.works() {
		var notes []string
		for _, l := range lines {
			if n, ok := strings.CutPrefix(l, "urun: "); ok {
				notes = append(notes, n)
			}
		}
		if len(notes) == 0 {
			return "yes"
		}
		return "yes; " + strings.Join(notes, "; ")
	}
	for _, l := range lines {
		for _, prefix := range []string{"urun: ", "Error: ", "ERRO[0000] ", "error "} {
			if reason, ok := strings.CutPrefix(l, prefix); ok {
				return "no: " + shorten(reason)
			}
		}
	}
	// Of others' warnings and errors, the last line is the reason.
	return fmt.Sprintf("no: status %d: %s", a.Status, shorten(lines[len(lines)-1]))
}

// logPrefix is that of podman's log lines, another one each time.
var logPrefix = regexp.MustCompile(`^time="[^"]*" level=[a-z]+ `)

// digest is that of the demo image, another one for each version.
var digest = regexp.MustCompile(` with blob "sha256:[0-9a-f]+"`)

func shorten(s string) string {
	s = digest.ReplaceAllString(logPrefix.ReplaceAllString(s, ""), "")
	s = strings.Join(strings.Fields(s), " ")
	const most = 240
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// after is a cell of what needs a container that runs: it is told from run why there is none.
func (r row) after(a attempt) string {
	if !r.Run.works() && !a.works() {
		return "no: as `run`"
	}
	if a.works() {
		return "yes"
	}
	return a.verdict()
}

// said is what doctor said.
type said struct {
	Works    bool
	Findings []struct{ Check, Status, Detail, Cure, Admin string }
}

func (s *said) degraded(check string) (detail string, yes bool) {
	for _, f := range s.Findings {
		if f.Check == check && f.Status != "ok" {
			return f.Detail, true
		}
	}
	return "", false
}

// doctor reads what doctor said. It is an error if that is not what happened.
func (r row) doctor() (*said, error) {
	s := &said{}
	if err := json.Unmarshal([]byte(r.Doctor.Out), s); err != nil {
		return nil, fmt.Errorf("%s, %s: doctor: %w: %s", r.Words, r.Who, err, r.Doctor.Errors)
	}
	// Of a rung that is forced it does not know.
	if r.Flags == "" && s.Works != r.Run.works() {
		return nil, fmt.Errorf("%s, %s: doctor says works: %v, but: %s", r.Words, r.Who, s.Works, r.Run.verdict())
	}
	if is := r.rung(s); r.Flags == "" && s.foretold() != is {
		return nil, fmt.Errorf("%s, %s: by doctor's word it stands on %q, but it stands on %q", r.Words, r.Who, s.foretold(), is)
	}
	return s, nil
}

// rung says in a few words what a container of the row stands on, by what run said is not as it would be.
func (r row) rung(s *said) string {
	if !r.Run.works() {
		return "none"
	}
	said := func(what string) bool { return strings.Contains(r.Run.Errors, what) }
	_, single := s.degraded("subordinate ids")
	return rung{
		chroot: said("no namespaces can be made here"), root: said("no user namespace can be made here"), single: single,
		unpacked: said("the image is unpacked"), copied: said("is a copy of its image"),
		proc: said("parts of the outer /proc are masked"), network: said("the container shares this machine's network"),
	}.String()
}

// rung is what a container stands on.
type rung struct{ chroot, root, single, unpacked, copied, proc, network bool }

func (g rung) String() string {
	if g.chroot {
		return "chroot"
	}
	parts := []string{"user namespace", "FUSE"}
	switch {
	case g.root:
		parts[0] = "root"
	case g.single:
		parts[0] = "user namespace of one id"
	}
	switch {
	case g.copied:
		parts[1] = "copy"
	case g.unpacked:
		parts[1] = "unpacked"
	}
	if g.proc {
		parts = append(parts, "the job's /proc")
	}
	if g.network {
		parts = append(parts, "the job's network")
	}
	return strings.Join(parts, ", ")
}

// foretold is the rung by what doctor says.
func (s *said) foretold() string {
	if !s.Works {
		return "none"
	}
	namespace, poor := s.degraded("user namespace")
	g := rung{chroot: strings.Contains(namespace, "chroot"), root: poor}
	_, g.single = s.degraded("subordinate ids")
	_, g.unpacked = s.degraded("image layers")
	layer, _ := s.degraded("writable layer")
	g.copied = g.unpacked && strings.HasPrefix(layer, "copy")
	_, g.proc = s.degraded("/proc")
	network, _ := s.degraded("network")
	g.network = strings.Contains(network, "share this machine's network")
	return g.String()
}

// cure is what doctor says to a user of the first thing that is not as it should be.
func (s *said) cure(user string) string {
	for _, f := range s.Findings {
		switch f.Check {
		case "ping", "ports", "limits", "linger", "open files":
			continue // no container is worse for it at its start
		}
		if f.Status != "ok" && f.Cure+f.Admin != "" {
			said := f.Check + ": " + strings.Trim(f.Cure+"; "+f.Admin, "; ")
			if line, ok := strings.CutSuffix(said, " "+user); ok { // of usermod
				said = line + " USER"
			}
			return said
		}
	}
	return "-"
}

const begin, end = "<!-- made by `make where`: begin -->", "<!-- made by `make where`: end -->"

// report writes the table between its marks. It is an error if doctor's word is not what happened.
func report(file string, rows []row) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(data), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no %s and %s", file, begin, end)
	}
	var b strings.Builder
	b.WriteString(before + begin + "\n\n| job | who | stands on | `run` | `-d` | `exec` | `rm` | doctor's first cure | Debian's podman |\n|---|---|---|---|---|---|---|---|---|\n")
	urun, podman, jobs := 0, 0, 0
	for _, r := range rows {
		s, err := r.doctor()
		if err != nil {
			return err
		}
		theirs := "-"
		if r.Flags == "" {
			theirs = r.Podman.verdict()
			jobs++
			urun += one(r.Run.works())
			podman += one(r.Podman.works())
		}
		cells := []string{
			r.Words, r.Who, r.rung(s), escape(r.Run.verdict()), escape(r.after(r.Detached)), escape(r.after(r.Exec)),
			escape(r.after(r.Rm)), escape(s.cure(r.user)), escape(theirs),
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	fmt.Fprintf(&b, "\nOf the %d rows whose rung is not forced, urun runs in %d, podman in %d.\n", jobs, urun, podman)
	b.WriteString("\n" + end + after)
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

func one(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

func escape(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
