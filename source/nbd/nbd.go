// Package nbd reads the exports of NBD servers as sources.
//
// A server does not tell whether what it exports changes meanwhile. So whoever
// names it says what it is: "?consistency=crash-consistent" for a snapshot or a
// machine that is off. Without that it is read on request only, and recorded
// with consistency "none". It opens for reading only.
package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	nbdclient "github.com/lockstep-backup/lockstep/nbd"
	"github.com/lockstep-backup/lockstep/source"
)

// Opener opens NBD URLs (NBD project, doc/uri.md): nbd://HOST[:PORT]/EXPORT,
// nbd+unix:///EXPORT?socket=PATH, and nbds… for encrypted connections, whose
// certificates are in the folder ?tls-certificates=DIR. ?consistency=LEVEL says
// how quiet the guest was.
type Opener struct{}

var _ source.Opener = Opener{}

// connectTime bounds how long a server may take to answer.
const connectTime = 30 * time.Second

const defaultPort = "10809"

// Address is a parsed URL.
type Address struct {
	Network, Address string // "tcp" and host:port, or "unix" and a path
	Export           string
	TLS              bool
	Certificates     string // folder
	Consistency      source.Consistency
}

// String names the export without what only a server needs to know.
func (a Address) String() string {
	if a.Network == "unix" {
		return fmt.Sprintf("nbd export %q at %s", a.Export, a.Address)
	}
	return fmt.Sprintf("nbd export %q of %s", a.Export, a.Address)
}

// IsURL says whether a spec is meant for this package.
func IsURL(spec string) bool {
	scheme, _, _ := strings.Cut(spec, "://")
	switch strings.ToLower(scheme) {
	case "nbd", "nbds", "nbd+unix", "nbds+unix":
		return strings.Contains(spec, "://")
	}
	return false
}

// ParseURL reads an NBD URL; errors are source.ErrUnsupported and repeat
// nothing of it, for it may hold a password where none belongs.
func ParseURL(spec string) (Address, error) {
	bad := func(why string) (Address, error) {
		return Address{}, fmt.Errorf("open source: nbd url: %s: %w", why, source.ErrUnsupported)
	}
	u, err := url.Parse(spec)
	if err != nil || !IsURL(spec) || u.Opaque != "" {
		return bad("it cannot be parsed")
	}
	if u.User != nil {
		return bad("it names a user, which the protocol does not know")
	}
	if u.Fragment != "" {
		return bad("it has a fragment")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("its query cannot be parsed")
	}
	a := Address{Export: strings.TrimPrefix(u.Path, "/")}
	scheme, unix, _ := strings.Cut(strings.ToLower(u.Scheme), "+")
	a.TLS = scheme == "nbds"
	for key, values := range q {
		if len(values) != 1 {
			return bad(fmt.Sprintf("%.40q is given more than once", key))
		}
		switch v := values[0]; key {
		case "socket":
			a.Network, a.Address = "unix", v
		case "tls-certificates":
			a.Certificates = v
		case "consistency":
			a.Consistency = source.Consistency(v)
		default:
			return bad(fmt.Sprintf("it has a parameter %.40q that is not known", key))
		}
	}
	switch a.Consistency {
	case "", source.ConsistencyNone, source.ConsistencyCrash, source.ConsistencyFileSystem, source.ConsistencyApplication:
	default:
		return bad("consistency is none, crash-consistent, file-system-consistent or application-consistent")
	}
	switch {
	case unix == "unix" && (a.Address == "" || u.Host != ""):
		return bad("it is not of the form nbd+unix:///EXPORT?socket=PATH")
	case unix == "unix":
	case a.Address != "":
		return bad("a socket belongs to nbd+unix://")
	case u.Hostname() == "":
		return bad("it names no host")
	default:
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		a.Network, a.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	}
	if a.TLS && a.Certificates == "" {
		return bad("an encrypted connection needs ?tls-certificates=DIR with ca-cert.pem")
	}
	return a, nil
}

// Open fails with source.ErrNotFound where no such export answers, with
// source.ErrInUse where nobody said what it is (unless opts.AllowLive), and with
// source.ErrUnsupported.
func (Opener) Open(ctx context.Context, spec string, opts source.Options) (source.Disk, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	a, err := ParseURL(spec)
	if err != nil {
		return nil, err
	}
	switch {
	case opts.AllowLive:
		a.Consistency = source.ConsistencyNone
	case a.Consistency == "":
		return nil, fmt.Errorf("open source %s: %w, or may be: a server does not tell; where it is a snapshot or the machine is off, add ?consistency=%s to the url",
			a, source.ErrInUse, source.ConsistencyCrash)
	}
	var config *tls.Config
	if a.TLS {
		if config, err = nbdclient.ClientTLS(a.Certificates); err != nil {
			return nil, fmt.Errorf("open source %s: %w", a, err)
		}
	}
	dial, stop := context.WithTimeout(ctx, connectTime)
	defer stop()
	c, err := nbdclient.Dial(dial, a.Network, a.Address, a.Export, config)
	if err != nil {
		return nil, fmt.Errorf("open source %s: %w", a, openError(err))
	}
	if c.Size() == 0 {
		return nil, errors.Join(fmt.Errorf("open source %s: %w: it is empty (0 bytes)", a, source.ErrUnsupported), c.Close())
	}
	return New(c, a.String(), a.Consistency), nil
}

// New is a source on a connection that is there already; it owns it. name is for messages.
func New(c *nbdclient.Client, name string, consistency source.Consistency) *Disk {
	return &Disk{client: c, name: name, consistency: consistency}
}

func openError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, nbdclient.ErrUnknownExport):
		return fmt.Errorf("%w: %w", source.ErrNotFound, err)
	case errors.Is(err, nbdclient.ErrTLSRequired):
		return fmt.Errorf("%w (nbds:// does that): %w", source.ErrUnsupported, err)
	case errors.Is(err, nbdclient.ErrNoTLS), errors.Is(err, nbdclient.ErrProtocol):
		return fmt.Errorf("%w: %w", source.ErrUnsupported, err)
	}
	return err
}

// Disk is an open export.
type Disk struct {
	client      *nbdclient.Client
	name        string
	consistency source.Consistency
}

// Size in bytes when opened; the protocol keeps it for as long as the connection lasts.
func (d *Disk) Size() int64 { return d.client.Size() }

// Consistency is what was said of it.
func (d *Disk) Consistency() source.Consistency { return d.consistency }

// ReadAt reads as io.ReaderAt says. A range that the server cannot read is a
// *source.UnreadableError; a server that is gone is not.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read source: offset %d is negative", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := d.client.ReadAt(p, off)
	if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, nbdclient.ErrClosed) {
		return n, err
	}
	err = fmt.Errorf("read source %s: %w", d.name, err)
	if errors.Is(err, nbdclient.ErrUnreadable) {
		at := off + int64(n)
		return n, &source.UnreadableError{Range: disk.Range{Offset: at, Length: min(int64(len(p)-n), d.Size()-at)}, Err: err}
	}
	return n, err
}

// NextData follows the server's block status; a server without it has data everywhere.
func (d *Disk) NextData(off int64) (disk.Range, error) {
	if off < 0 {
		return disk.Range{}, fmt.Errorf("find data: offset %d is negative", off)
	}
	at, length, err := d.client.NextData(off)
	if errors.Is(err, io.EOF) && !errors.Is(err, nbdclient.ErrClosed) {
		return disk.Range{}, io.EOF
	}
	if err != nil {
		return disk.Range{}, fmt.Errorf("find data of source %s: %w", d.name, err)
	}
	return disk.Range{Offset: at, Length: length}, nil
}

// Check asks the server for the first sector: the connection is to what was
// opened, or it is gone.
func (d *Disk) Check() error {
	if _, err := d.client.ReadAt(make([]byte, min(disk.SectorSize, d.Size())), 0); errors.Is(err, nbdclient.ErrClosed) {
		return fmt.Errorf("check source %s: %w: %w", d.name, source.ErrNotFound, err)
	}
	return nil // a sector that cannot be read is for the reader to report
}

// Changed never knows.
func (d *Disk) Changed(context.Context, string) ([]disk.Range, bool, string, error) {
	return nil, false, "nbd servers are not asked for changed-block tracking", nil
}

// Close ends the connection.
func (d *Disk) Close() error {
	if err := d.client.Close(); err != nil {
		return fmt.Errorf("close source %s: %w", d.name, err)
	}
	return nil
}
