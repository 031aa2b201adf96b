// Package nbdlisten opens what an NBD server listens on, by what the user
// wrote: unix:PATH or HOST:PORT. Across a network it wants encryption.
package nbdlisten

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lockstep-backup/lockstep/nbd"
)

// Errors that callers give a hint to.
var (
	ErrAddress = errors.New("address is neither unix:PATH nor HOST:PORT")
	ErrNoTLS   = errors.New("whoever can reach it could read the disks, and change what is read on its way")
	// ErrOpen refuses Private.
	ErrOpen     = errors.New("others than who exports could read the plaintext there")
	ErrInUse    = errors.New("somebody listens there already")
	ErrNoSocket = errors.New("there is a file, and it is no socket")
)

// Options say where to listen.
type Options struct {
	Address      string
	Certificates string // folder in QEMU's layout; "" = none
	Insecure     bool
	// Private lets nobody in but this user, by a unix socket, and clients that are
	// known by a certificate.
	Private bool
}

// Listener is where an NBD server listens.
type Listener struct {
	net.Listener
	TLS *tls.Config // nil: not encrypted
	// AnyClient says that the connection is encrypted and clients are not known
	// by a certificate.
	AnyClient bool
}

// Open listens. A TCP address that is not of this host itself needs certificates.
func Open(ctx context.Context, o Options) (*Listener, error) {
	l := &Listener{}
	if o.Certificates != "" {
		var known bool
		var err error
		if l.TLS, known, err = nbd.ServerTLS(o.Certificates); err != nil {
			return nil, err
		}
		l.AnyClient = !known
	}
	path, isUnix := strings.CutPrefix(o.Address, "unix:")
	if o.Private && (!isUnix && l.TLS == nil || l.AnyClient) {
		return nil, fmt.Errorf("listen on %s: %w", o.Address, ErrOpen)
	}
	if isUnix {
		if path == "" {
			return nil, ErrAddress
		}
		var err error
		l.Listener, err = listenUnix(ctx, path)
		return l, err
	}
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAddress, err)
	}
	if l.TLS == nil && !o.Insecure && !loopback(host) {
		return nil, fmt.Errorf("listen on %s without encryption: %w", o.Address, ErrNoTLS)
	}
	var c net.ListenConfig
	if l.Listener, err = c.Listen(ctx, "tcp", o.Address); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// loopback is what no other host reaches. Names are not trusted to say so,
// except the one that stands for it.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// listenUnix makes a socket that only its owner can connect to. A socket whose
// server died is replaced.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("listen on %s: %w", path, ErrNoSocket)
	default:
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, ErrInUse), conn.Close())
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen: remove the socket of a server that ended: %w", err)
		}
	}
	// Made in a folder of its own and renamed, the socket is never there with
	// a mode that lets others in.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".nbd-")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(made, 0o600)
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), l.Close())
	}
	return &socket{l, path}, nil
}

// socket goes away with its listener.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if err == nil { // once: the path may be another's later
		err = os.Remove(s.path)
	}
	return err
}

// URI of an export, as the tools take it.
func (l *Listener) URI(export string) string {
	scheme := "nbd"
	if l.TLS != nil {
		scheme = "nbds"
	}
	if s, ok := l.Listener.(*socket); ok {
		return scheme + "+unix:///" + url.PathEscape(export) + "?socket=" + (&url.URL{Path: s.path}).EscapedPath()
	}
	return scheme + "://" + l.Addr().String() + "/" + url.PathEscape(export)
}
