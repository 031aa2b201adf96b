// Package provertest runs a prover inside the test's own process, over pipes:
// the same protocol, no process. Only tests import it.
package provertest

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/lockstep-backup/lockstep/custody/prover"
)

// Start returns a client whose child is a goroutine that serves deps. It is
// closed when the test ends.
func Start(tb testing.TB, deps prover.Deps) *prover.Client {
	tb.Helper()
	c := prover.NewDialer(func() (*prover.Conn, error) { return Dial(deps), nil }, nil)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Dial starts one child.
func Dial(deps prover.Deps) *prover.Conn {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := prover.Serve(context.Background(), inR, outW, deps)
		_ = outW.Close()
		_ = inR.Close()
		done <- err
	}()
	killed := errors.New("killed")
	return &prover.Conn{
		In: inW, Out: outR,
		Kill: func() {
			_ = inR.CloseWithError(killed)
			_ = outW.CloseWithError(killed)
			_ = outR.CloseWithError(killed)
		},
		Wait: func() error { return <-done },
	}
}
