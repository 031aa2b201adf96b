// Command lockstep-recover restores machines with nothing left but a repository
// and the recovery kit. It needs no server, no catalog and no key manager, and
// it never writes to the repository.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/lockstep-backup/lockstep/cmd/lockstep-recover/command"
	"github.com/lockstep-backup/lockstep/custody/prover"
)

// version is set when a release is built.
var version = "development"

func main() {
	// The recovery identity and what it opens are in this process.
	if err := prover.Harden(0); err != nil {
		fmt.Fprintf(os.Stderr, "warning: %v\n", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := command.Main(ctx, command.Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: version,
		StdoutTerminal: term.IsTerminal(int(os.Stdout.Fd())),
		StderrTerminal: term.IsTerminal(int(os.Stderr.Fd())),
	})
	stop()
	os.Exit(status)
}
