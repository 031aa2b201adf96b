package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxAnswerBytes bounds one JSON answer: a hundred thousand recovery points
	// of a few disks each stay below it.
	maxAnswerBytes = 256 << 20
	// maxProblemBytes bounds a problem document.
	maxProblemBytes = 1 << 20
	// maxHeaderBytes bounds an exported header; LUKS2 allows 4 MiB of metadata
	// twice and key-slot areas of up to 128 MiB.
	maxHeaderBytes = 512 << 20
)

// Client speaks the HTTP API over any http.RoundTripper. It follows no
// redirects, for requests may carry secrets, and it trusts no size that the
// other side names. Its methods are safe for use by several goroutines.
//
// A refusal by the server is an *Error; anything else is a failure to reach or
// to understand it.
type Client struct {
	base *url.URL
	http *http.Client
	// pause waits before the n-th attempt (from 1) to follow a job again.
	pause func(ctx context.Context, n int) error
}

// New makes a client of the server whose root is base, e.g.
// "https://backup.example:8443/", reached through rt.
func New(rt http.RoundTripper, base string) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("server url: %w", err)
	}
	if u.Host == "" || u.Opaque != "" {
		return nil, fmt.Errorf("server url: %q names no host", u.Redacted())
	}
	u.RawQuery, u.Fragment = "", ""
	return &Client{
		base: u,
		http: &http.Client{
			Transport:     rt,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		pause: pauseBefore,
	}, nil
}

// NewUnix makes a client of the server that listens on a unix socket.
func NewUnix(socketPath string) *Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	c, err := New(&http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socketPath)
		},
		DisableCompression: true,
	}, "http://lockstep/")
	if err != nil {
		panic(err) // the address is a constant
	}
	return c
}

// NewURL makes a client of the server at an https:// URL, an http:// URL of
// this host, or unix:///path/to/socket. Plain http to another host is refused,
// because requests and answers may carry secrets.
func NewURL(raw string) (*Client, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("server url: %w", err)
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || u.Path == "" {
			return nil, fmt.Errorf("server url: %q is not of the form unix:///path/to/socket", u.Redacted())
		}
		return NewUnix(u.Path), nil
	case "http":
		if !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("server url: %s is another host, and secrets would travel in the clear; use https", u.Hostname())
		}
	case "https":
	default:
		return nil, fmt.Errorf("server url: %q is neither https://, http://localhost nor unix://", u.Redacted())
	}
	return New(&http.Transport{
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 30 * time.Second,
		DisableCompression:  true,
		ForceAttemptHTTP2:   true,
	}, raw)
}

// NewHandler makes a client that calls h in this process. Answers stream: the
// client reads an event when the handler writes it.
func NewHandler(h http.Handler) *Client {
	c, err := New(handlerTransport{h}, "http://in-process/")
	if err != nil {
		panic(err) // the address is a constant
	}
	return c
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Close closes idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Machines lists the protected machines.
func (c *Client) Machines(ctx context.Context) ([]Machine, error) {
	return call[[]Machine](ctx, c, http.MethodGet, nil, nil, "machines")
}

// CreateMachine enrols a machine.
func (c *Client) CreateMachine(ctx context.Context, m MachineCreate) (MachineDetail, error) {
	return call[MachineDetail](ctx, c, http.MethodPost, m, nil, "machines")
}

// Machine returns a machine with its disks as they are now.
func (c *Client) Machine(ctx context.Context, name string) (MachineDetail, error) {
	return call[MachineDetail](ctx, c, http.MethodGet, nil, nil, "machines", name)
}

// ChangeMachine says where disks of a machine lie from now on.
func (c *Client) ChangeMachine(ctx context.Context, name string, m MachineChange) (MachineDetail, error) {
	return call[MachineDetail](ctx, c, http.MethodPatch, m, nil, "machines", name)
}

// RemoveMachine removes a machine that has no recovery points.
func (c *Client) RemoveMachine(ctx context.Context, name string) error {
	return c.send(ctx, http.MethodDelete, nil, nil, nil, "machines", name)
}

// Volumes lists the disks of a machine with their volumes, as of the recovery
// point with the id point, or as they are now where point is "".
func (c *Client) Volumes(ctx context.Context, machine, point string) ([]DiskView, error) {
	return call[[]DiskView](ctx, c, http.MethodGet, nil, query("point", point), "machines", machine, "volumes")
}

// SetNotNeeded declares a volume as not needed, or needed again where the
// reason is empty. It returns the recovery points whose state changed.
func (c *Client) SetNotNeeded(ctx context.Context, machine string, n NotNeeded) ([]Point, error) {
	return call[[]Point](ctx, c, http.MethodPost, n, nil, "machines", machine, "not-needed")
}

// Secrets lists secrets, of one machine where machine is not "".
func (c *Client) Secrets(ctx context.Context, machine string) ([]Secret, error) {
	return call[[]Secret](ctx, c, http.MethodGet, nil, query("machine", machine), "secrets")
}

// AddSecret takes a secret into custody. The caller wipes s.Data afterwards;
// the copies made here are wiped when they have been sent.
func (c *Client) AddSecret(ctx context.Context, s SecretAdd) (SecretAddResult, error) {
	return call[SecretAddResult](ctx, c, http.MethodPost, s, nil, "secrets")
}

// DeriveSecrets takes into custody what a volume keeps under its own key.
func (c *Client) DeriveSecrets(ctx context.Context, d SecretDerive) (SecretDeriveResult, error) {
	return call[SecretDeriveResult](ctx, c, http.MethodPost, d, nil, "secrets", "derive")
}

// Secret returns a secret without its bytes; id is its id, or the name of a
// machine that has one secret.
func (c *Client) Secret(ctx context.Context, id string) (Secret, error) {
	return call[Secret](ctx, c, http.MethodGet, nil, nil, "secrets", id)
}

// DisableSecret deactivates a secret or, as SECRET@VERSION, one version of it.
func (c *Client) DisableSecret(ctx context.Context, ref, reason string) (Secret, error) {
	return call[Secret](ctx, c, http.MethodPost, Reason{reason}, nil, "secrets", ref, "disable")
}

// EnableSecret takes DisableSecret back.
func (c *Client) EnableSecret(ctx context.Context, ref, reason string) (Secret, error) {
	return call[Secret](ctx, c, http.MethodPost, Reason{reason}, nil, "secrets", ref, "enable")
}

// DestroySecret destroys a version that no recovery point holds. Where one
// does, the *Error has ExitRefused and the recovery points as Items.
func (c *Client) DestroySecret(ctx context.Context, ref, reason string) (Secret, error) {
	return call[Secret](ctx, c, http.MethodPost, Reason{reason}, nil, "secrets", ref, "destroy")
}

// ReleaseSecret hands out a secret's bytes; the caller wipes them.
func (c *Client) ReleaseSecret(ctx context.Context, ref, reason string) (Released, error) {
	return call[Released](ctx, c, http.MethodPost, Reason{reason}, nil, "secrets", ref, "release")
}

// Backup starts a backup.
func (c *Client) Backup(ctx context.Context, r BackupRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "backups")
}

// Points lists recovery points, of one machine where machine is not "".
func (c *Client) Points(ctx context.Context, machine string) ([]Point, error) {
	return call[[]Point](ctx, c, http.MethodGet, nil, query("machine", machine), "points")
}

// Point returns a recovery point by id, unique prefix, NAME@latest or NAME@TIME.
func (c *Client) Point(ctx context.Context, point string) (Point, error) {
	return call[Point](ctx, c, http.MethodGet, nil, nil, "points", point)
}

// DeletePoint deletes a recovery point in one repository.
func (c *Client) DeletePoint(ctx context.Context, point string, r PointDelete) (PointDeleted, error) {
	return call[PointDeleted](ctx, c, http.MethodDelete, r, nil, "points", point)
}

// Prove starts opening recovery points with the escrowed secrets.
func (c *Client) Prove(ctx context.Context, r ProveRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "proofs")
}

// Restore starts writing disks back.
func (c *Client) Restore(ctx context.Context, r RestoreRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "restores")
}

// ExportHeader writes the header of a volume, as the usual tools read it, to w
// and returns its size in bytes. repository names the one to read it in; "" =
// the nearest that has the recovery point. warn is told which one could not be
// used, and why.
func (c *Client) ExportHeader(ctx context.Context, point, disk, volume, repository string, w io.Writer, warn func(string)) (int64, error) {
	resp, err := c.do(ctx, http.MethodGet, "application/octet-stream", nil, query("repository", repository),
		"points", point, "disks", disk, "volumes", volume, "header")
	if err != nil {
		return 0, err
	}
	if warn != nil {
		for _, text := range resp.Header.Values(WarningHeader) {
			warn(text)
		}
	}
	defer func() { _ = resp.Body.Close() }()
	n, err := io.Copy(w, io.LimitReader(resp.Body, maxHeaderBytes+1))
	switch {
	case err != nil:
		return n, fmt.Errorf("read the header: %w", err)
	case n > maxHeaderBytes:
		return n, fmt.Errorf("read the header: the answer is longer than %d bytes", maxHeaderBytes)
	case resp.ContentLength >= 0 && n != resp.ContentLength:
		return n, fmt.Errorf("read the header: the answer ended after %d of %d bytes", n, resp.ContentLength)
	}
	return n, nil
}

// Status returns the picture of recovery points and secret versions, of one
// machine where machine is not "".
func (c *Client) Status(ctx context.Context, machine string) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, nil, query("machine", machine), "status")
}

// Verify starts reading back and comparing; no points means all.
func (c *Client) Verify(ctx context.Context, r VerifyRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "verifications")
}

// RebuildCatalog starts rebuilding the catalog from the repository with this
// URL; "" = the installation's.
func (c *Client) RebuildCatalog(ctx context.Context, repository string) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, nil, query("repository", repository), "catalog", "rebuild")
}

// AuditEntries lists the entries of the audit log with Index >= from.
func (c *Client) AuditEntries(ctx context.Context, from int64) ([]AuditEntry, error) {
	var q url.Values
	if from > 0 {
		q = query("from", strconv.FormatInt(from, 10))
	}
	return call[[]AuditEntry](ctx, c, http.MethodGet, nil, q, "audit")
}

// VerifyAudit checks the audit log against its checkpoints.
func (c *Client) VerifyAudit(ctx context.Context) (AuditReport, error) {
	return call[AuditReport](ctx, c, http.MethodPost, nil, nil, "audit", "verify")
}

// Jobs lists the jobs that the server remembers.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	return call[[]Job](ctx, c, http.MethodGet, nil, nil, "jobs")
}

// Job returns a job.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	return call[Job](ctx, c, http.MethodGet, nil, nil, "jobs", id)
}

// CancelJob asks a job to stop; it ends soon after, not at once.
func (c *Client) CancelJob(ctx context.Context, id string) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, nil, nil, "jobs", id, "cancel")
}

func query(key, value string) url.Values {
	if value == "" {
		return nil
	}
	return url.Values{key: {value}}
}

func call[T any](ctx context.Context, c *Client, method string, in any, q url.Values, path ...string) (T, error) {
	var out T
	err := c.send(ctx, method, in, &out, q, path...)
	return out, err
}

// send calls and decodes the answer into out, which is nil where none is due.
func (c *Client) send(ctx context.Context, method string, in, out any, q url.Values, path ...string) error {
	resp, err := c.do(ctx, method, "application/json", in, q, path...)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if out == nil {
		// A short rest is read so that the connection can be used again.
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
		return nil
	}
	if err := decodeOne(resp.Body, maxAnswerBytes, out); err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, resp.Request.URL.Path, err)
	}
	return nil
}

// errTooLong is an answer beyond the bound.
var errTooLong = errors.New("longer than it may be")

// decodeOne decodes exactly one JSON document of at most limit bytes.
func decodeOne(r io.Reader, limit int64, out any) error {
	lr := &io.LimitedReader{R: r, N: limit + 1}
	dec := json.NewDecoder(lr)
	err := dec.Decode(out)
	if err == nil {
		if _, err = dec.Token(); err == nil {
			err = errors.New("more than one JSON document")
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	} else if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if lr.N <= 0 {
		return errTooLong
	}
	return err
}

// do sends one request and returns the answer if its status is 2xx.
func (c *Client) do(ctx context.Context, method, accept string, in any, q url.Values, path ...string) (*http.Response, error) {
	u := *c.base
	escaped := make([]string, 0, len(path))
	for _, p := range path {
		if p == "" || p == "." || p == ".." {
			return nil, &Error{
				Status: http.StatusBadRequest, Title: "Bad Request", Exit: ExitUsage,
				Detail: fmt.Sprintf("%s: %q is not a name", strings.ToLower(path[0]), p),
			}
		}
		escaped = append(escaped, url.PathEscape(p))
	}
	// JoinPath keeps what is escaped: a volume id may hold a slash.
	target := u.JoinPath("v1/" + strings.Join(escaped, "/"))
	target.RawQuery = q.Encode()

	req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, target.Path, err)
	}
	req.Header.Set("Accept", accept+", application/problem+json")
	if in != nil {
		encoded, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: write the request: %w", method, target.Path, err)
		}
		req.Body = &wipedBody{r: bytes.NewReader(encoded), b: encoded}
		req.ContentLength = int64(len(encoded))
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // it repeats the method and the address
		}
		return nil, fmt.Errorf("%s %s: %w", method, target.Path, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, problem(resp, method, target.Path)
}

// problem decodes what a server that did not do it says about it. Only named
// fields are taken: validation errors of servers like to repeat the value they
// did not accept, which may be a secret.
func problem(resp *http.Response, method, path string) *Error {
	var doc struct {
		Error
		Errors []struct {
			Message  string `json:"message"`
			Location string `json:"location"`
		} `json:"errors"`
	}
	err := decodeOne(resp.Body, maxProblemBytes, &doc)
	e := doc.Error
	if err != nil || (e.Title == "" && e.Detail == "") {
		e = Error{
			Title:  http.StatusText(resp.StatusCode),
			Detail: fmt.Sprintf("%s %s: the server answered %d without saying why", method, path, resp.StatusCode),
		}
	}
	for _, x := range doc.Errors {
		if err == nil && x.Message != "" {
			e.Items = append(e.Items, strings.TrimPrefix(x.Location+": "+x.Message, ": "))
		}
	}
	e.Status = resp.StatusCode
	if e.Exit <= ExitDone || e.Exit > 255 {
		e.Exit = exitOf(resp.StatusCode)
	}
	return &e
}

// exitOf is the exit status where the server names none.
func exitOf(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return ExitUsage
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict:
		return ExitRefused
	default:
		return ExitFailed
	}
}

// wipedBody is a request body that is overwritten once it has been sent. The
// transport may close it while another goroutine still reads.
type wipedBody struct {
	mu sync.Mutex
	r  *bytes.Reader
	b  []byte
}

func (w *wipedBody) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.b == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	return w.r.Read(p)
}

func (w *wipedBody) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.b)
	w.b = nil
	return nil
}
