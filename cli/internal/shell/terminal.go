package shell

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/lockstep-backup/lockstep/cli/internal/files"
)

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && f != nil && term.IsTerminal(int(f.Fd()))
}

// readPassword reads a line from a terminal without echo. Interrupted, it puts
// the terminal back as it was.
func readPassword(ctx context.Context, stdin io.Reader) ([]byte, error) {
	f, ok := stdin.(*os.File)
	if !ok {
		return nil, errors.New("standard input is no terminal")
	}
	fd := int(f.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	b, err := files.Interruptible(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	if ctx.Err() != nil {
		_ = term.Restore(fd, before)
	}
	return b, err
}
