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

func shorten(s string) string {
	s = logPrefix.ReplaceAllString(s, "")
	s = strings.Join(strings.Fields(s), " ")
	const most = 160
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// detached says whether run -d and rm -f work, and nothing is left.
func (r row) detached() string {
	switch {
	case r.Detached.Status == 0 && strings.Fields(r.Detached.Out)[len(strings.Fields(r.Detached.Out))-1] == "0":
		return "yes"
	case !r.Urun.works():
		return "-"
	}
	return r.Detached.verdict()
}

// cure is what doctor says of the first thing that is missing.
func (r row) cure() (string, error) {
	var said struct {
		Works    bool
		Findings []struct{ Check, Status, Cure, Admin string }
	}
	if err := json.Unmarshal([]byte(r.Doctor.Out), &said); err != nil {
		return "", fmt.Errorf("%s, %s: doctor: %w: %s", r.Fixture, r.Who, err, r.Doctor.Errors)
	}
	if said.Works != r.Urun.works() {
		return "", fmt.Errorf("%s, %s: doctor says works: %v, but: %s", r.Fixture, r.Who, said.Works, r.Urun.verdict())
	}
	for _, f := range said.Findings {
		if f.Status == "missing" {
			return f.Check + ": " + strings.Trim(f.Cure+"; "+f.Admin, "; "), nil
		}
	}
	return "", nil
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
	b.WriteString(before + begin + "\n\n| job | who | `urun run` | `run -d`, `rm -f` | doctor's first cure | Debian's podman |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		cure, err := r.cure()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.Words, r.Who, escape(r.Urun.verdict()), escape(r.detached()), escape(cure), escape(r.Podman.verdict()))
	}
	b.WriteString("\n" + end + after)
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

func escape(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
