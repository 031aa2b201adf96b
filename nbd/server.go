package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Disk is what an export reads. Its methods are called by several goroutines
// at once, for ranges inside of Size.
type Disk interface {
	io.ReaderAt
	Size() int64
	// NextData returns the next range at or behind off that is not known to be
	// zeroes; io.EOF when nothing follows.
	NextData(off int64) (offset, length int64, err error)
}

// Writer is what an export that can be written writes. Its methods are called
// by several goroutines at once, for ranges inside of the disk.
type Writer interface {
	io.WriterAt
	// Zero makes a range read as zeroes.
	Zero(off, length int64) error
	// Sync returns when what was written before will outlive a crash.
	Sync() error
}

// Prefetcher is a Disk that can be told what will be read.
type Prefetcher interface {
	Prefetch(off, length int64) error
}

// Export is one disk under a name.
type Export struct {
	Name        string
	Description string
	Disk        Disk
	Writer      Writer // nil: read-only
}

// Config of a server.
type Config struct {
	Exports []Export
	// TLS makes the server talk to nobody who does not encrypt.
	TLS *tls.Config
	Log *slog.Logger
}

// Server hands out exports on any number of connections.
type Server struct {
	exports []Export
	tls     *tls.Config
	log     *slog.Logger
	room    chan struct{} // one for each connection
}

// What one connection may take. A connection holds at most
// smallSlots × smallBuffer + bigBuffers × bigBuffer bytes for data: 5 MiB.
const (
	maxConnections = 64
	smallSlots     = 16 // requests in flight
	smallBuffer    = 64 << 10
	bigBuffers     = 4 // of the requests in flight may be larger than smallBuffer
	bigBuffer      = 1 << 20
	handshakeTime  = time.Minute
	partingTime    = 5 * time.Second // for answers that are under way at the end
)

// NewServer makes a server of exports with distinct names.
func NewServer(c Config) (*Server, error) {
	if len(c.Exports) == 0 {
		return nil, errors.New("nbd server: nothing to export")
	}
	names := map[string]bool{}
	for _, e := range c.Exports {
		if len(e.Name) > MaxName || names[e.Name] || e.Disk.Size() < 0 {
			return nil, fmt.Errorf("nbd server: export %q cannot be offered", e.Name)
		}
		names[e.Name] = true
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{exports: c.Exports, tls: c.TLS, log: c.Log, room: make(chan struct{}, maxConnections)}, nil
}

// find knows an export by its name; the empty name is that of an only one.
func (s *Server) find(name string) (*Export, bool) {
	for i := range s.exports {
		if s.exports[i].Name == name || name == "" && len(s.exports) == 1 {
			return &s.exports[i], true
		}
	}
	return nil, false
}

// Serve answers connections of l until ctx ends, then ends them in peace: what
// was asked is answered. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			_ = l.Close()
			return fmt.Errorf("accept nbd connection: %w", err)
		}
		select {
		case s.room <- struct{}{}:
		default:
			s.log.Warn("nbd connection refused: there are too many", "limit", maxConnections)
			_ = conn.Close()
			continue
		}
		all.Go(func() {
			defer func() { <-s.room }()
			if err := s.ServeConn(ctx, conn); err != nil {
				s.log.Warn("nbd connection ended", "peer", conn.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// ServeConn answers one connection until its client leaves or ctx ends, and
// closes it.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(handshakeTime))
	// A deadline in the past wakes who waits for the client's next word.
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		_ = conn.SetWriteDeadline(time.Now().Add(partingTime))
	})
	defer stop()
	h := handshake{server: s, conn: conn}
	agreed, err := h.run()
	if err != nil || agreed == nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	if ctx.Err() != nil { // the deadline just removed may have been the one that ends it
		return nil
	}
	s.log.Info("nbd connection", "peer", conn.RemoteAddr().String(), "export", agreed.export.Name)
	err = newSession(h.conn, agreed, s.log).run()
	if ctx.Err() != nil {
		return nil
	}
	return err
}
