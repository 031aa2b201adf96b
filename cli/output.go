package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/api"
)

// printJSON prints the one document of this run.
func (a *app) printJSON(v any) {
	a.printed = true
	enc := json.NewEncoder(a.env.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		a.warnf("lockstep: write the answer: %v", err)
		a.note(api.ExitFailed)
	}
}

// emit prints v as the JSON document, or calls text.
func (a *app) emit(v any, text func(w io.Writer)) {
	if a.json() {
		a.printJSON(v)
		return
	}
	text(a.env.Stdout)
}

// emitList is emit for lists: none is [] and not null.
func emitList[T any](a *app, list []T, text func(w io.Writer)) {
	if list == nil {
		list = []T{}
	}
	a.emit(list, text)
}

// done confirms; with -o json v is the document.
func (a *app) done(v any, format string, args ...any) {
	a.emit(v, func(w io.Writer) {
		if !a.quiet {
			_, _ = fmt.Fprintf(w, format+"\n", args...)
		}
	})
}

// warnf writes a line to standard error.
func (a *app) warnf(format string, args ...any) {
	_, _ = fmt.Fprintf(a.env.Stderr, format+"\n", args...)
}

// sayf writes a line to standard error that --quiet holds back.
func (a *app) sayf(format string, args ...any) {
	if !a.quiet {
		a.warnf(format, args...)
	}
}
