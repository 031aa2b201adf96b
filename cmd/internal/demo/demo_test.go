package demo

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
)

// What does not end as the story says makes the demonstration fail.
func TestDemoFails(t *testing.T) {
	d := &demo{Program: Program{URL: func(dir string) string { return dir }}, story: io.Discard, dir: t.TempDir()}
	if err := d.show("lockstep", []string{"backup", "web01"}, "", 0, api.ExitNotProven); err == nil {
		t.Error("a backup that is proven where the story says it is not passes")
	}
	if _, err := d.lockstep(context.Background(), 0, "backup", "web01"); err == nil {
		t.Error("a command that fails passes")
	}
	if err := d.recover(context.Background(), 0, "list"); err == nil {
		t.Error("a recovery that fails passes")
	}
	file := filepath.Join(d.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run(context.Background(), cli.DemoOptions{Dir: file}, d.Program); err == nil {
		t.Error("a file is taken for a folder")
	}
	stopped, stop := context.WithCancel(context.Background())
	stop()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	if err := Run(stopped, cli.DemoOptions{}, d.Program); err == nil {
		t.Error("an interrupted demonstration passes")
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("an interrupted demonstration leaves %v", left)
	}
}
