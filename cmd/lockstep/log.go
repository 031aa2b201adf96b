package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"unicode"
)

// forPeople writes warnings as the commands write theirs: a line that begins
// with "warning:", and the details behind it in words. Who reads a command's
// standard error wants neither levels nor quoted fields.
type forPeople struct {
	mu    *sync.Mutex
	w     io.Writer
	attrs []slog.Attr
}

// newLogger writes warnings for people; what is going on is told by jobs.
func newLogger(w io.Writer) *slog.Logger {
	return slog.New(forPeople{mu: new(sync.Mutex), w: w})
}

// Enabled implements slog.Handler.
func (h forPeople) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// WithAttrs implements slog.Handler.
func (h forPeople) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return h
}

// WithGroup implements slog.Handler. Names of groups say nothing to people.
func (h forPeople) WithGroup(string) slog.Handler { return h }

// Handle implements slog.Handler.
func (h forPeople) Handle(_ context.Context, r slog.Record) error {
	var details []string
	failure := ""
	add := func(a slog.Attr) bool {
		value := a.Value.Resolve().String()
		switch {
		case value == "" || a.Value.Kind() == slog.KindAny && a.Value.Any() == nil:
		case a.Key == "error":
			failure = value
		default:
			details = append(details, strings.ReplaceAll(a.Key, "_", " ")+" "+value)
		}
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	line := r.Message
	if len(details) > 0 {
		line += " (" + strings.Join(details, ", ") + ")"
	}
	if failure != "" {
		line += ": " + failure
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := fmt.Fprintf(h.w, "warning: %s\n", oneLine(line))
	return err
}

// oneLine keeps what a name or an error holds from looking like a line of ours
// or moving the cursor.
func oneLine(text string) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, text)
}
