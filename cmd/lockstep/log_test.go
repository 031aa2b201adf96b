package main

import (
	"bytes"
	"errors"
	"testing"
)

func TestWarningsAreForPeople(t *testing.T) {
	var b bytes.Buffer
	log := newLogger(&b)
	log.Info("nobody needs this")
	log.Warn("a disk cannot be read now", "machine", "web01", "error", errors.Join(errors.New("open: \x1b[2Jgone"), errors.New("and more")))
	log.With("object", "x").Error("audit log")
	want := "warning: a disk cannot be read now (machine web01): open: \uFFFD[2Jgone; and more\nwarning: audit log (object x)\n"
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
}
