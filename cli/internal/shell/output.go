package shell

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// PrintJSON prints the one document of this run.
func (a *Run) PrintJSON(v any) {
	a.printed = true
	enc := json.NewEncoder(a.Env.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		a.Warnf("lockstep: write the answer: %v", err)
		a.Note(api.ExitFailed)
	}
}

// Emit prints v as the JSON document, or calls text.
func (a *Run) Emit(v any, text func(w io.Writer)) {
	if a.JSON() {
		a.PrintJSON(v)
		return
	}
	text(a.Env.Stdout)
}

// EmitList is Emit for lists: none is [] and not null.
func EmitList[T any](a *Run, list []T, text func(w io.Writer)) {
	if list == nil {
		list = []T{}
	}
	a.Emit(list, text)
}

// Done confirms; with -o json v is the document.
func (a *Run) Done(v any, format string, args ...any) {
	a.Emit(v, func(w io.Writer) {
		if !a.Quiet {
			_, _ = fmt.Fprintf(w, format+"\n", args...)
		}
	})
}

// Warnf writes a line to standard error.
func (a *Run) Warnf(format string, args ...any) {
	_, _ = fmt.Fprintf(a.Env.Stderr, format+"\n", args...)
}

// Sayf writes a line to standard error that --quiet holds back.
func (a *Run) Sayf(format string, args ...any) {
	if !a.Quiet {
		a.Warnf(format, args...)
	}
}

// WarnAll prints warnings.
func (a *Run) WarnAll(warnings []string) {
	for _, s := range warnings {
		a.Warnf("warning: %s", screen.Clean(s))
	}
}

// PaintState colours the state of a recovery point or a machine.
func (a *Run) PaintState(state string) string { return a.Style.State(state) }

// First is the first argument, "" where there is none.
func First(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// JSONLine prints one of many documents, each on a line of its own, where the
// answer is a stream.
func (a *Run) JSONLine(v any) error {
	a.printed = true
	enc := json.NewEncoder(a.Env.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
