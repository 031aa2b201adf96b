package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/hostos"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/server"
)

// serve answers on the data directory's socket until ctx ends.
func serve(ctx context.Context, o cli.ServeOptions) error {
	dir := dataDir(o.DataDir)
	if o.Log == nil {
		o.Log = io.Discard
	}
	log := slog.New(slog.NewTextHandler(o.Log, nil))
	e, err := openEngine(dir, log)
	if err != nil {
		return err
	}
	defer func() { _ = e.close() }()
	// The lock goes with the process that has it, however that ends.
	lock, err := job.NewLocks(dir.locks()).Acquire("serve", "lockstep serve")
	if errors.Is(err, job.ErrBusy) {
		return &api.Error{
			Status: http.StatusConflict, Title: "busy", Exit: api.ExitBusy,
			Detail: fmt.Sprintf("serve: another server has this data directory: %v", err),
			Hint:   "commands find it by themselves",
		}
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	l, err := listen(dir)
	if err != nil {
		return err
	}
	deps := e.deps()
	deps.Restricted, deps.AllowSources, deps.AllowTargets = true, o.AllowSources, o.AllowTargets
	deps.Actor = "unknown"
	s := server.New(deps)
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext:       identify,
	}
	for _, x := range []struct {
		what, flag string
		folders    []string
	}{{"sources", "--allow-source", o.AllowSources}, {"targets", "--allow-target", o.AllowTargets}} {
		if len(x.folders) == 0 {
			log.Warn("no "+x.what+" are allowed", "flag", x.flag)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(l) }()
	if o.Ready != nil {
		o.Ready("unix://" + dir.socket())
	}
	select {
	case err = <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	log.Info("shutting down: jobs are asked to stop; what they committed stays")
	wait, stop := context.WithTimeout(context.Background(), shutdownWait)
	defer stop()
	// Jobs first: who follows one hears of its end.
	err = errors.Join(s.Shutdown(wait), h.Shutdown(wait))
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.Join(err, h.Close())
	}
	return err
}

// listen makes the socket, for its owner only, in the place of one that a
// killed server left. The caller holds the server's lock, so nobody listens there.
func listen(dir dataDir) (net.Listener, error) {
	if err := os.MkdirAll(dir.run(), 0o700); err != nil {
		return nil, fmt.Errorf("serve: %w", err)
	}
	if err := os.Remove(dir.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("serve: remove the socket of a server that ended: %w", err)
	}
	l, err := net.Listen("unix", dir.socket())
	if err != nil {
		return nil, cli.WithHint(fmt.Errorf("serve: %w", err), "a socket's path may have about 100 bytes; a data directory with a shorter path helps")
	}
	if err := os.Chmod(dir.socket(), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("serve: %w", err), l.Close())
	}
	return ownerOnly{l}, nil
}

// ownerOnly lets nobody in but who runs the server, and root. The socket's mode
// says the same; not every system heeds it.
type ownerOnly struct{ net.Listener }

func (l ownerOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, known, err := hostos.Peer(c)
		if err != nil || known && uid != 0 && uid != os.Getuid() {
			_ = c.Close()
			continue
		}
		return c, nil
	}
}

// identify says who is behind a connection.
func identify(ctx context.Context, c net.Conn) context.Context {
	uid, known, err := hostos.Peer(c)
	if err != nil || !known {
		return server.WithActor(ctx, "local")
	}
	return server.WithActor(ctx, fmt.Sprintf("uid:%d", uid))
}
