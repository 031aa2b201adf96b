//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
)

func (b *bench) peers() error {
	if _, err := exec.LookPath("restic"); err == nil {
		if out, err := exec.Command("sh", "-c", "RESTIC_PASSWORD=bench restic init -r '"+b.path("restic")+"'").CombinedOutput(); err != nil {
			return fmt.Errorf("restic init: %w\n%s", err, out)
		}
		if err := b.step(stepRestic, "restic", "-q", "-r", b.path("restic"), "backup", b.image); err != nil {
			return err
		}
		if err := b.step(stepResticRe, "restic", "-q", "-r", b.path("restic"), "restore", "latest", "--target", b.path("copy")); err != nil {
			return err
		}
		_ = os.RemoveAll(b.path("copy"))
		_ = os.RemoveAll(b.path("restic"))
	}
	if _, err := exec.LookPath("borg"); err == nil {
		if out, err := exec.Command("borg", "init", "-e", "none", b.path("borg")).CombinedOutput(); err != nil {
			return fmt.Errorf("borg init: %w\n%s", err, out)
		}
		if err := b.step(stepBorg, "borg", "create", "--compression", "none", b.path("borg")+"::a", b.image); err != nil {
			return err
		}
		if err := os.MkdirAll(b.path("copy"), 0o700); err != nil {
			return err
		}
		if err := b.step(stepBorgRe, "sh", "-c", "cd '"+b.path("copy")+"' && borg extract '"+b.path("borg")+"::a'"); err != nil {
			return err
		}
		_ = os.RemoveAll(b.path("copy"))
		_ = os.RemoveAll(b.path("borg"))
	}
	if _, err := exec.LookPath(b.kopia); err == nil {
		if err := os.MkdirAll(b.path("kopia"), 0o700); err != nil {
			return err
		}
		if err := b.step("kopia create", b.kopia, "repository", "create", "filesystem", "--path", b.path("kopia"), "--block-hash", "BLAKE3-256", "--object-splitter", "FIXED-1M"); err != nil {
			return err
		}
		if err := b.step(stepKopia, b.kopia, "snapshot", "create", b.image); err != nil {
			return err
		}
		_ = os.RemoveAll(b.path("kopia"))
	}
	return nil
}
