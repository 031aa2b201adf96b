package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/hostos"
	"github.com/lockstep-backup/lockstep/custody/prover"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// proverArgument makes this program the prover. Its only other argument is the
// data directory: what opens the key manager lies in files.
const proverArgument = "prover"

// proverCommand starts this program again as the prover.
func proverCommand(dir dataDir) func() (*exec.Cmd, error) {
	return func() (*exec.Cmd, error) {
		// Looked for here, where who asked is told: of a child that does not
		// start only that it died is seen.
		if _, err := os.Stat(dir.proverKey()); err != nil {
			return nil, cli.WithHint(fmt.Errorf("prover key: %w", err), "bring it back from a backup of the data directory; without it nothing can be proven")
		}
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("start prover: %w", err)
		}
		cmd := exec.Command(self, proverArgument, string(dir))
		cmd.Env = []string{} // nothing of it is needed, and it may hold anything
		if root := os.Getenv("SystemRoot"); root != "" {
			cmd.Env = append(cmd.Env, "SystemRoot="+root) // Windows' random numbers need it
		}
		cmd.Stderr = os.Stderr
		return cmd, nil
	}
}

// runProver is the prover's process.
func runProver(dir string) int {
	log := newLogger(os.Stderr)
	// Interrupted at the terminal, the parent ends it when it is done with it.
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	if err := serveProver(dataDir(dir), log); err != nil && !errors.Is(err, prover.ErrAbandoned) {
		log.Error("prover", "error", err)
		return 1
	}
	return 0
}

func serveProver(dir dataDir, log *slog.Logger) error {
	limits := diskcrypt.Limits{KDFMemory: kdfMemory()}
	if err := prover.Harden(limits.KDFMemory); err != nil {
		return err
	}
	c, err := dir.load()
	if err != nil {
		return err
	}
	key, err := envelope.ReadSigningKeyFile(dir.proverKey())
	if err != nil {
		return fmt.Errorf("prover key: %w", err)
	}
	defer key.Wipe()
	mac, err := envelope.ReadSecretFile(dir.vkproofKey(), false, nil)
	if err != nil {
		// A proof holds without it; only that two volume keys are the same one
		// is not seen.
		log.Warn("proofs are made without a key to compare volume keys by", "error", err)
	}
	defer mac.Wipe()
	return prover.Serve(context.Background(), os.Stdin, os.Stdout, prover.Deps{
		Manager: func(context.Context) (keymanager.Manager, error) {
			m, err := dir.openManager(c)
			if err != nil {
				return nil, err
			}
			return m, nil
		},
		Formats: formats(), Key: key, MACKey: mac,
		Recipients: func(context.Context) ([]string, error) { return c.Recipients, nil },
		Limits:     limits, Software: software(), Log: log,
	})
}

// The memory that a header may ask for: half of what the machine has, as
// cryptsetup does when it makes one, so that hostile headers cannot bring the
// machine to a halt; no less than cryptsetup's default of 1 GiB, for a disk of
// a larger machine must open here as well.
const (
	minKDFMemory = 1 << 30
	maxKDFMemory = 4 << 30 // the most that LUKS2 allows
)

func kdfMemory() int64 {
	return min(max(hostos.PhysicalMemory()/2, minKDFMemory), maxKDFMemory)
}
