package prover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
)

// maxReadPerVolume bounds what a child may ask for in one request, for each
// volume, in bytes: header areas and the beginning of the plaintext, several times.
const maxReadPerVolume = 256 << 20

// Conn is a running child.
type Conn struct {
	In  io.WriteCloser // its standard input
	Out io.Reader      // its standard output
	// Kill ends it at once; Wait returns when it has ended, saying how.
	Kill func()
	Wait func() error
}

// Client is the parent's side; it implements custody.Prover. It starts the
// child when it is first needed, and a new one after one died.
type Client struct {
	dial func() (*Conn, error)
	log  *slog.Logger

	mu   sync.Mutex
	conn *Conn
	key  string // of the child, as it says
}

var _ custody.Prover = (*Client)(nil)

// New returns a client whose child is a run of what command returns; its
// standard input and output are the client's, all else (arguments, environment,
// standard error) is the caller's. No secret is in any of them.
func New(command func() (*exec.Cmd, error), log *slog.Logger) *Client {
	return NewDialer(func() (*Conn, error) {
		cmd, err := command()
		if err != nil {
			return nil, err
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return &Conn{In: in, Out: out, Kill: func() { _ = cmd.Process.Kill() }, Wait: cmd.Wait}, nil
	}, log)
}

// NewDialer returns a client over whatever dial starts. log may be nil.
func NewDialer(dial func() (*Conn, error), log *slog.Logger) *Client {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Client{dial: dial, log: log}
}

// Start is New, and starts the child at once, so that a program that cannot
// be run is told now.
func Start(command func() (*exec.Cmd, error), log *slog.Logger) (*Client, error) {
	c := New(command, log)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.start(); err != nil {
		return nil, err
	}
	return c, nil
}

// Key is the id of the key that the child signs with, "" before it first ran.
func (c *Client) Key() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.key
}

// Close ends the child and waits for it. The client can be used again.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	conn := c.conn
	c.conn = nil
	_ = conn.In.Close() // the child ends when its input does
	late := time.AfterFunc(5*time.Second, conn.Kill)
	defer late.Stop()
	if err := conn.Wait(); err != nil {
		return fmt.Errorf("close prover: %w", err)
	}
	return nil
}

func (c *Client) start() error {
	if c.conn != nil {
		return nil
	}
	conn, err := c.dial()
	if err != nil {
		return fmt.Errorf("start prover: %w: %w", custody.ErrProverStart, err)
	}
	c.conn = conn
	m, _, err := readFrame(conn.Out)
	if err == nil && (m.Kind != kindHello || m.Protocol != protocolVersion) {
		err = fmt.Errorf("%w: it says %q of version %d", custody.ErrProverProtocol, printable(m.Kind), m.Protocol)
	}
	if err != nil {
		return c.died("start prover", err)
	}
	c.key = printable(m.Key)
	return nil
}

// died ends the child for good and says how it ended.
func (c *Client) died(operation string, cause error) error {
	conn := c.conn
	c.conn = nil
	conn.Kill()
	_ = conn.In.Close()
	end := conn.Wait()
	c.log.Warn("prover ended", "operation", operation, "cause", cause, "end", end)
	switch {
	case errors.Is(cause, custody.ErrProverProtocol):
		return fmt.Errorf("%s: %w", operation, cause)
	case end != nil:
		return fmt.Errorf("%s: %w: %w", operation, custody.ErrProverDied, end)
	}
	return fmt.Errorf("%s: %w: %w", operation, custody.ErrProverDied, cause)
}

// exchange sends one request and serves the child's reads until handle says
// that a message ended it.
func (c *Client) exchange(ctx context.Context, operation string, request message, body []byte, reads *readGate, handle func(message, []byte) (done bool, err error)) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	if err := c.start(); err != nil {
		return err
	}
	// Nothing inside the child can be interrupted while it derives a key.
	stop := context.AfterFunc(ctx, c.conn.Kill)
	defer stop()
	fail := func(err error) error {
		err = c.died(operation, err)
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", operation, ctx.Err())
		}
		return err
	}
	if err := writeFrame(c.conn.In, request, body); err != nil {
		if errors.Is(err, custody.ErrTooLarge) {
			return fmt.Errorf("%s: %w", operation, err)
		}
		return fail(err)
	}
	for {
		m, body, err := readFrame(c.conn.Out)
		if err != nil {
			return fail(err)
		}
		if m.Kind == kindRead {
			answer, data, err := reads.serve(m.Read)
			if err == nil {
				err = writeFrame(c.conn.In, answer, data)
			}
			if err != nil {
				return fail(err)
			}
			continue
		}
		done, err := handle(m, body)
		if errors.Is(err, custody.ErrProverProtocol) {
			return fail(err)
		}
		if done && m.Last {
			_ = c.died(operation, errors.New("an attempt did not end in its time"))
		}
		if done || err != nil {
			return err
		}
	}
}

// readGate serves reads of what the request names, and of nothing else.
type readGate struct {
	points custody.PointReader
	allow  map[readRequest]bool // without offset and length
	left   int64
	buf    []byte
}

func newReadGate(points custody.PointReader) *readGate {
	return &readGate{points: points, allow: map[readRequest]bool{}}
}

func (g *readGate) add(disk string, v diskcrypt.Volume) {
	g.allow[readRequest{Disk: disk, Volume: v.ID}] = true
	g.allow[readRequest{Disk: disk, Volume: v.ID, Header: true}] = v.Detached
	g.left += maxReadPerVolume
}

func (g *readGate) serve(r *readRequest) (message, []byte, error) {
	if r == nil || r.Length < 0 || r.Length > maxRead || r.Offset < 0 ||
		!g.allow[readRequest{Disk: r.Disk, Volume: r.Volume, Header: r.Header}] {
		return message{}, nil, fmt.Errorf("%w: a read that it was not asked for", custody.ErrProverProtocol)
	}
	if g.left -= int64(r.Length); g.left < 0 {
		return message{}, nil, fmt.Errorf("%w: it reads too much", custody.ErrProverProtocol)
	}
	if len(g.buf) < r.Length {
		g.buf = make([]byte, r.Length)
	}
	n, err := g.points.ReadAt(r.Disk, r.Volume, r.Header, g.buf[:r.Length], r.Offset)
	if n < 0 || n > r.Length {
		n = 0
	}
	answer := message{Kind: kindBytes}
	switch {
	case errors.Is(err, io.EOF):
		answer.End = true
	case err != nil:
		answer.Error = printable(err.Error())
	}
	return answer, g.buf[:n], nil
}

// Try implements custody.Prover.
func (c *Client) Try(ctx context.Context, r custody.Request, points custody.PointReader) (custody.Outcome, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reads := newReadGate(points)
	for _, v := range r.Volumes {
		reads.add(v.Disk, v.Volume)
	}
	proofs := make([][]byte, len(r.Volumes))
	var out custody.Outcome
	err := c.exchange(ctx, "try secrets", message{Kind: kindTry, Try: &r}, r.Inline.Expose(), reads, func(m message, body []byte) (bool, error) {
		switch m.Kind {
		case kindProof:
			if m.Index < 0 || m.Index >= len(proofs) || proofs[m.Index] != nil || len(body) == 0 {
				return false, fmt.Errorf("%w: a proof for volume %d", custody.ErrProverProtocol, m.Index)
			}
			proofs[m.Index] = body
			return false, nil
		case kindResult:
			if m.Outcome == nil {
				return false, fmt.Errorf("%w: a result without outcome", custody.ErrProverProtocol)
			}
			out = *m.Outcome
			return true, checkOutcome(r, out, proofs)
		}
		return false, unexpected(m)
	})
	if err != nil {
		return custody.Outcome{}, err
	}
	for i := range out.Volumes {
		out.Volumes[i].Proof = proofs[i]
	}
	return out, nil
}

func unexpected(m message) error {
	if m.Kind == kindError {
		if m.Code == codeManager {
			return fmt.Errorf("%w: %s", custody.ErrManager, printable(m.Error))
		}
		return fmt.Errorf("prover refuses: %s", printable(m.Error))
	}
	return fmt.Errorf("%w: message %q", custody.ErrProverProtocol, printable(m.Kind))
}

// checkOutcome refuses an outcome that does not answer the request.
func checkOutcome(r custody.Request, out custody.Outcome, proofs [][]byte) error {
	bad := func(what string) error { return fmt.Errorf("%w: %s", custody.ErrProverProtocol, what) }
	if len(out.Volumes) != len(r.Volumes) {
		return bad("an outcome of another number of volumes")
	}
	for i := range out.Volumes {
		v, asked := &out.Volumes[i], r.Volumes[i]
		if len(v.Attempts) > len(asked.Candidates)+1 {
			return bad("more attempts than candidates")
		}
		opened := false
		for j := range v.Attempts {
			a := &v.Attempts[j]
			known := slices.ContainsFunc(asked.Candidates, func(x custody.CandidateRequest) bool { return x.Secret == a.Secret })
			if a.Inline && r.Inline.Len() == 0 || !a.Inline && !known {
				return bad("an attempt that was not asked for")
			}
			switch a.Tried {
			case custody.Opens:
				opened = opened || !a.Inline
				if len(a.Protectors) == 0 || len(a.Protectors) > 256 {
					return bad("opened without a protector")
				}
			case custody.Refused, custody.Stopped:
			default:
				return bad("an attempt without outcome")
			}
			for k := range a.Protectors {
				a.Protectors[k] = printable(a.Protectors[k])
			}
			a.Why = printable(a.Why)
		}
		if (proofs[i] != nil) != (opened && r.Point != "") {
			return bad("a proof without an opening, or an opening without a proof")
		}
		v.Class, v.Error = printable(v.Class), printable(v.Error)
	}
	return nil
}

// Package implements custody.Prover.
func (c *Client) Package(ctx context.Context, r custody.PackageRequest, points custody.PointReader) (custody.Packages, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reads := newReadGate(points)
	for _, h := range r.Headers {
		reads.add(h.Disk, h.Volume)
	}
	groups := len(custody.RecipientGroups(r.Recipients))
	var out custody.Packages
	err := c.exchange(ctx, "make key package", message{Kind: kindPackage, Package: &r}, nil, reads, func(m message, body []byte) (bool, error) {
		switch {
		case m.Kind == kindKeyPackage && m.KeyCover != nil && len(body) > 0 && len(out.Key) < groups:
			out.Key = append(out.Key, custody.SignedKeyPackage{Cover: *m.KeyCover, Raw: body})
		case m.Kind == kindHeaderPackage && m.HeaderCover != nil && len(body) > 0 && len(out.Headers) < groups*len(r.Headers):
			out.Headers = append(out.Headers, custody.SignedHeaderPackage{Cover: *m.HeaderCover, Raw: body})
		case m.Kind == kindResult && len(m.Problems) <= len(r.Headers):
			for _, p := range m.Problems {
				out.Problems = append(out.Problems, printable(p))
			}
			return true, nil
		default:
			return false, unexpected(m)
		}
		return false, nil
	})
	if err != nil {
		return custody.Packages{}, err
	}
	return out, nil
}
