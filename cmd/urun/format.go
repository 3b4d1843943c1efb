package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
	"text/template"
)

// printFormat prints rows as docker's --format does: "json" is one object a line, "table TEMPLATE" has a line of headings and
// aligned columns, anything else is a Go template for each row.
func printFormat[T any](w io.Writer, format string, headings T, rows []T) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	text, isTable := strings.CutPrefix(format, "table ")
	t, err := parseTemplate(text)
	if err != nil {
		return err
	}
	if !isTable {
		return executeRows(w, t, rows)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	if err := executeRows(tw, t, append([]T{headings}, rows...)); err != nil {
		return err
	}
	return tw.Flush()
}

func executeRows[T any](w io.Writer, t *template.Template, rows []T) error {
	for _, r := range rows {
		if err := t.Execute(w, r); err != nil {
			return templateError(err)
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
	}
	return nil
}

// parseTemplate reads a template with the functions that docker's have.
func parseTemplate(text string) (*template.Template, error) {
	text = unescape(text)
	t, err := template.New("format").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"split": strings.Split,
	}).Parse(text)
	if err != nil {
		return nil, templateError(err)
	}
	return t, nil
}

// unescape makes tabs and ends of lines of \t and \n, which a shell passes on as
// they are. Within {{ and }} they stay: there they are Go's.
func unescape(text string) string {
	escapes := strings.NewReplacer(`\t`, "\t", `\n`, "\n")
	var b strings.Builder
	for text != "" {
		before, rest, found := strings.Cut(text, "{{")
		b.WriteString(escapes.Replace(before))
		if !found {
			break
		}
		action, after, closed := strings.Cut(rest, "}}")
		b.WriteString("{{" + action)
		if closed {
			b.WriteString("}}")
		}
		text = after
	}
	return b.String()
}

// templateError says what is wrong with a template in the user's words, without
// the names that the program gave it and its types.
func templateError(err error) error {
	var exec template.ExecError
	text := err.Error()
	if !errors.As(err, &exec) && !strings.HasPrefix(text, "template: ") {
		return err // of the output
	}
	// Compiled here: no command but one with a wrong template needs them.
	text = regexp.MustCompile(`^template: format:[0-9:]+ (executing "format" at )?`).ReplaceAllString(text, "")
	text = regexp.MustCompile(` in type \S+$`).ReplaceAllString(text, "")
	return &hintError{fmt.Errorf("--format: %s", text), "--format takes a Go template: --format '{{json .}}' shows what there is"}
}
