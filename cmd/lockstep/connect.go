package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/server"
)

// shutdownWait is how long work may take to end when it is asked to.
const shutdownWait = time.Minute

// connect gives a client of the named server, else of the one that listens on
// the data directory's socket, else of the engine in this process.
func connect(ctx context.Context, to cli.Connection) (*api.Client, func() error, error) {
	if to.Server != "" {
		c, err := api.NewURL(to.Server)
		if err != nil {
			return nil, nil, err
		}
		return c, c.Close, nil
	}
	dir := dataDir(to.DataDir)
	if to.Overlay != "" {
		return withOverlay(ctx, dir, to.Overlay, newLogger(os.Stderr))
	}
	live, err := socketAnswers(ctx, dir.socket())
	if err != nil {
		return nil, nil, err
	}
	if live {
		c := api.NewUnix(dir.socket())
		return c, c.Close, nil
	}
	return inProcess(dir, newLogger(os.Stderr))
}

// inProcess runs the engine in this process.
func inProcess(dir dataDir, log *slog.Logger) (*api.Client, func() error, error) {
	e, err := openEngine(dir, log)
	if err != nil {
		return nil, nil, err
	}
	c, closeFn := serveInProcess(e, server.New(e.deps()))
	return c, closeFn, nil
}

// serveInProcess gives a client of a server without a socket, and what ends it.
func serveInProcess(e *engine, s *server.Server) (*api.Client, func() error) {
	c := api.NewHandler(s)
	return c, func() error {
		ctx, stop := context.WithTimeout(context.Background(), shutdownWait)
		defer stop()
		return errors.Join(s.Shutdown(ctx), c.Close(), e.close())
	}
}

// socketAnswers says whether somebody listens on the socket. A socket that is
// left over from a process that died refuses connections; that is not an error.
func socketAnswers(ctx context.Context, path string) (bool, error) {
	if _, err := os.Lstat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		// Somebody else's data directory: say so now rather than open it in vain.
		return false, fmt.Errorf("look for a server: %w", err)
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return true, conn.Close()
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look for a server on %s: %w", path, err)
	}
}
