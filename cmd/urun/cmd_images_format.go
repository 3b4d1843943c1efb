package main

import (
	"encoding/json"
	"fmt"
	"io"
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
			return fmt.Errorf("--format: %w", err)
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
	}
	return nil
}

// parseTemplate reads a template with the functions that docker's have.
func parseTemplate(text string) (*template.Template, error) {
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := template.New("format").Option("missingkey=error").Funcs(template.FuncMap{
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
		return nil, fmt.Errorf("--format: %w", err)
	}
	return t, nil
}
