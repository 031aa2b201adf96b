// Command lockstep is the command line, the server and the prover in one
// program. This package is wiring: it reads the environment, keeps the layout of
// the data directory, and chooses the adapters. It decides nothing else.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/adesecret"
	"github.com/lockstep-backup/lockstep/cmd/internal/barestore"
	"github.com/lockstep-backup/lockstep/cmd/internal/demo"
	"github.com/lockstep-backup/lockstep/custody/prover"
)

// version is set when a release is built.
var version = ""

func main() { os.Exit(program()) }

// program is all of it; tests run it in processes of their own.
func program() int {
	restrictFileModes()
	// The prover is this program again, for secrets to be tried in a process of
	// its own (see package custody/prover). Nobody types this.
	if len(os.Args) == 3 && os.Args[1] == proverArgument {
		return runProver(os.Args[2])
	}
	// Secrets pass through this process too when they are added or released, and
	// the repository's key stays in it.
	if err := prover.Harden(0); err != nil {
		fmt.Fprintf(os.Stderr, "warning: %v\n", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, environment())
	stop()
	return code
}

func environment() cli.Env {
	return cli.Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
		Version: programVersion(),
		Connect: connect, Init: initialise, Serve: serve, Demo: tellStory, VerifyStored: barestore.Verify, CheckStore: barestore.Check,
		Export: exportPoint, Mount: mountPoint, Browse: browsePoint, Overlay: showOverlay, DiscardOverlay: discardOverlay, Drill: cli.Drilling{Run: holdDrill, Reports: drillReports},
		DecodeADE: adesecret.Decode,
	}
}

func tellStory(ctx context.Context, o cli.DemoOptions) error {
	return demo.Run(ctx, o, demo.Program{Version: programVersion(), Env: cli.Env{Connect: connect, Init: initialise}, URL: fileURL})
}

// programVersion is what was set at release, else what the build knows.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "development"
}

// software is what manifests and proofs say made them.
func software() string { return "lockstep " + programVersion() }
