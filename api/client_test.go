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
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// reply answers every request with a status and a body.
func reply(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestMethodsCallThePathsOfTheContract(t *testing.T) {
	var got, body string
	c := NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r.Method+" "+r.URL.RequestURI(), string(b)
		switch {
		case r.Method == http.MethodDelete && r.URL.Path != "/v1/points/p" && !strings.HasPrefix(r.URL.Path, "/v1/repositories"):
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/v1/secrets/s":
			_, _ = io.WriteString(w, "{}")
		case r.Method == http.MethodGet && (strings.HasSuffix(r.URL.Path, "s") && r.URL.Path != "/v1/status" || r.URL.Path == "/v1/audit"),
			strings.HasSuffix(r.URL.Path, "not-needed"):
			_, _ = io.WriteString(w, "[]")
		default:
			_, _ = io.WriteString(w, "{}")
		}
	}))
	ctx := testContext(t)
	tests := []struct {
		call       func() error
		want, body string
	}{
		{func() error { _, err := c.Machines(ctx); return err }, "GET /v1/machines", ""},
		{func() error { _, err := c.CreateMachine(ctx, MachineCreate{Name: "a"}); return err }, "POST /v1/machines", `{"name":"a","disks":null}`},
		{func() error { _, err := c.Machine(ctx, "a b"); return err }, "GET /v1/machines/a%20b", ""},
		{func() error {
			_, err := c.ChangeMachine(ctx, "a", MachineChange{Disks: []DiskDef{{ID: "d", Source: "/s"}}, RemoveDisks: []string{"e"}})
			return err
		}, "PATCH /v1/machines/a", `{"disks":[{"id":"d","source":"/s"}],"remove_disks":["e"]}`},
		{func() error { return c.RemoveMachine(ctx, "a") }, "DELETE /v1/machines/a", ""},
		{func() error { _, err := c.Volumes(ctx, "a", ""); return err }, "GET /v1/machines/a/volumes", ""},
		{func() error { _, err := c.Volumes(ctx, "a", "p&q"); return err }, "GET /v1/machines/a/volumes?point=p%26q", ""},
		{func() error { _, err := c.SetNotNeeded(ctx, "a", NotNeeded{"v", "r"}); return err }, "POST /v1/machines/a/not-needed", `{"volume":"v","reason":"r"}`},
		{func() error { _, err := c.Secrets(ctx, "a"); return err }, "GET /v1/secrets?machine=a", ""},
		{func() error {
			_, err := c.AddSecret(ctx, SecretAdd{Machine: "a", Kind: "k", Data: []byte{1}})
			return err
		}, "POST /v1/secrets", `{"machine":"a","kind":"k","data":"AQ=="}`},
		{func() error { _, err := c.Secret(ctx, "s"); return err }, "GET /v1/secrets/s", ""},
		{func() error { _, err := c.DisableSecret(ctx, "s@1", "r"); return err }, "POST /v1/secrets/s@1/disable", `{"reason":"r"}`},
		{func() error { _, err := c.EnableSecret(ctx, "s@1", "r"); return err }, "POST /v1/secrets/s@1/enable", `{"reason":"r"}`},
		{func() error { _, err := c.DestroySecret(ctx, "s@1", "r"); return err }, "POST /v1/secrets/s@1/destroy", `{"reason":"r"}`},
		{func() error { _, err := c.ReleaseSecret(ctx, "s@1", "r"); return err }, "POST /v1/secrets/s@1/release", `{"reason":"r"}`},
		{func() error { _, err := c.Backup(ctx, BackupRequest{Machine: "a"}); return err }, "POST /v1/backups", `{"machine":"a"}`},
		{func() error { _, err := c.Points(ctx, ""); return err }, "GET /v1/points", ""},
		{func() error { _, err := c.Point(ctx, "a@2026-01-01T00:00:00Z"); return err }, "GET /v1/points/a@2026-01-01T00:00:00Z", ""},
		{func() error { _, err := c.DeletePoint(ctx, "p", PointDelete{Reason: "r"}); return err }, "DELETE /v1/points/p", `{"reason":"r"}`},
		{func() error { _, err := c.Prove(ctx, ProveRequest{All: true}); return err }, "POST /v1/proofs", `{"all":true}`},
		{func() error { _, err := c.Restore(ctx, RestoreRequest{Point: "p"}); return err }, "POST /v1/restores", `{"point":"p","targets":null}`},
		{func() error { _, err := c.ExportHeader(ctx, "p", "d", "v/w", "offsite", io.Discard, nil); return err }, "GET /v1/points/p/disks/d/volumes/v%2Fw/header?repository=offsite", ""},
		{func() error { _, err := c.Status(ctx, "a"); return err }, "GET /v1/status?machine=a", ""},
		{func() error { _, err := c.RemoveRepository(ctx, "off/site", false); return err }, "DELETE /v1/repositories/off%2Fsite", ""},
		{func() error { _, err := c.RemoveRepository(ctx, "offsite", true); return err }, "DELETE /v1/repositories/offsite?force=true", ""},
		{func() error { _, err := c.Verify(ctx, VerifyRequest{}); return err }, "POST /v1/verifications", `{}`},
		{func() error { _, err := c.Scrub(ctx, ScrubRequest{Bytes: 5, OlderThanSeconds: 60}); return err }, "POST /v1/scrubs", `{"bytes":5,"older_than_seconds":60}`},
		{func() error { _, err := c.RebuildCatalog(ctx, ""); return err }, "POST /v1/catalog/rebuild", ""},
		{func() error { _, err := c.AuditEntries(ctx, 7); return err }, "GET /v1/audit?from=7", ""},
		{func() error { _, err := c.VerifyAudit(ctx); return err }, "POST /v1/audit/verify", ""},
		{func() error { _, err := c.Jobs(ctx); return err }, "GET /v1/jobs", ""},
		{func() error { _, err := c.Job(ctx, "j"); return err }, "GET /v1/jobs/j", ""},
		{func() error { _, err := c.CancelJob(ctx, "j"); return err }, "POST /v1/jobs/j/cancel", ""},
	}
	for _, tt := range tests {
		if err := tt.call(); err != nil || got != tt.want || body != tt.body {
			t.Errorf("got %s with %q, %v; want %s with %q", got, body, err, tt.want, tt.body)
		}
	}
}

func TestNamesCannotLeaveTheirPlaceInThePath(t *testing.T) {
	var got string
	c := NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.URL.RequestURI()
		_, _ = io.WriteString(w, "{}")
	}))
	for name, want := range map[string]string{
		"../points/x": "/v1/machines/..%2Fpoints%2Fx", "a?b=c#d": "/v1/machines/a%3Fb=c%23d", "%2e%2e": "/v1/machines/%252e%252e",
		"..": "", ".": "", "": "",
	} {
		got = ""
		_, err := c.Machine(testContext(t), name)
		var e *Error
		if got != want || (want == "") != errors.As(err, &e) {
			t.Errorf("machine %q asks for %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		want   Error
	}{
		{
			"problem", 409, `{"status":409,"title":"Conflict","detail":"destroy secret: held","exit":4,"hint":"keep it","items":["p1","p2"]}`,
			Error{Status: 409, Title: "Conflict", Detail: "destroy secret: held", Exit: 4, Hint: "keep it", Items: []string{"p1", "p2"}},
		},
		{
			"validation errors without the values", 422,
			`{"title":"Unprocessable Entity","detail":"validation failed","errors":[{"message":"expected length","location":"body.data","value":"hunter2"},{"message":"x"}]}`,
			Error{Status: 422, Title: "Unprocessable Entity", Detail: "validation failed", Exit: 2, Items: []string{"body.data: expected length", "x"}},
		},
		{"nothing", 502, "", Error{Status: 502, Title: "Bad Gateway", Detail: "GET /v1/jobs: the server answered 502 without saying why", Exit: 1}},
		{"html", 403, "<html>", Error{Status: 403, Title: "Forbidden", Detail: "GET /v1/jobs: the server answered 403 without saying why", Exit: 4}},
		{"redirect", 302, "", Error{Status: 302, Title: "Found", Detail: "GET /v1/jobs: the server answered 302 without saying why", Exit: 1}},
		{"wrong types", 500, `{"title":7}`, Error{Status: 500, Title: "Internal Server Error", Detail: "GET /v1/jobs: the server answered 500 without saying why", Exit: 1}},
		{"exit out of range", 500, `{"title":"x","exit":4096}`, Error{Status: 500, Title: "x", Exit: 1}},
		{"too long", 500, `{"title":"` + strings.Repeat("x", maxProblemBytes) + `"}`, Error{Status: 500, Title: "Internal Server Error", Detail: "GET /v1/jobs: the server answered 500 without saying why", Exit: 1}},
	}
	for _, tt := range tests {
		_, err := NewHandler(reply(tt.status, tt.body)).Jobs(testContext(t))
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got, want := fmt.Sprintf("%+v", *e), fmt.Sprintf("%+v", tt.want); got != want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, want)
		}
	}
}

func TestMalformedAnswers(t *testing.T) {
	for name, body := range map[string]string{
		"empty": "", "cut off": `[{"id":"a"`, "wrong type": `{"id":1}`, "two documents": `[][]`, "not JSON": "<html>", "deep": strings.Repeat("[", 100000),
	} {
		if jobs, err := NewHandler(reply(200, body)).Jobs(testContext(t)); err == nil {
			t.Errorf("%s: no error, %v", name, jobs)
		}
	}
}

func TestDecodeIsBounded(t *testing.T) {
	var out []string
	endless := io.MultiReader(strings.NewReader(`["`), zeros{})
	if err := decodeOne(endless, 1<<16, &out); !errors.Is(err, errTooLong) {
		t.Errorf("got %v, want %v", err, errTooLong)
	}
	if err := decodeOne(io.MultiReader(strings.NewReader(`["a"]`), spaces{}), 1<<16, &out); !errors.Is(err, errTooLong) {
		t.Errorf("spaces without end: got %v, want %v", err, errTooLong)
	}
	if err := decodeOne(strings.NewReader(`["a"]`), 5, &out); err != nil {
		t.Errorf("at the bound: %v", err)
	}
}

type (
	zeros  struct{}
	spaces struct{}
)

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestExportHeader(t *testing.T) {
	var b bytes.Buffer
	n, err := NewHandler(reply(200, "LUKS")).ExportHeader(testContext(t), "p", "d", "v", "", &b, nil)
	if n != 4 || err != nil || b.String() != "LUKS" {
		t.Errorf("%d, %v, %q", n, err, b.String())
	}
	short := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "LUKS")
	})
	if _, err := NewHandler(short).ExportHeader(testContext(t), "p", "d", "v", "", io.Discard, nil); err == nil {
		t.Error("an answer that broke off is no error")
	}
}

func TestAnswersStreamInProcess(t *testing.T) {
	goOn := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now()); err != nil {
			t.Errorf("set a deadline: %v", err)
		}
		_, _ = io.WriteString(w, "data: {\"n\":1,\"kind\":\"message\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-goOn // the client must have the first event before the second is written
		_, _ = io.WriteString(w, "data: {\"n\":2,\"kind\":\"done\"}\n\n")
	})
	mux := http.NewServeMux()
	mux.Handle("GET /v1/jobs/j/events", h)
	mux.Handle("GET /v1/jobs/j", reply(200, `{"id":"j","state":"succeeded"}`))
	var seen []int
	j, err := NewHandler(mux).WatchJob(testContext(t), "j", func(e JobEvent) error {
		seen = append(seen, e.N)
		if e.N == 1 {
			close(goOn)
		}
		return nil
	})
	if err != nil || j.State != "succeeded" || !slices.Equal(seen, []int{1, 2}) {
		t.Fatalf("%+v, %v, %v", j, err, seen)
	}
}

func TestReaderThatGoesAwayEndsTheHandler(t *testing.T) {
	ended := make(chan error, 1)
	c := NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "data: {\"n\":1,\"kind\":\"message\"}\n\n")
		<-r.Context().Done()
		_, err := io.WriteString(w, strings.Repeat("x", 1<<20))
		ended <- err
	}))
	stop := errors.New("seen enough")
	if _, err := c.WatchJob(testContext(t), "j", func(JobEvent) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the handler wrote to nobody without an error")
		}
	case <-testContext(t).Done():
		t.Fatal("the handler still runs")
	}
}

func TestPanickingHandlerIsAnError(t *testing.T) {
	before := NewHandler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("no disk") }))
	if _, err := before.Jobs(testContext(t)); err == nil || !strings.Contains(err.Error(), "the handler failed: no disk") {
		t.Errorf("got %v", err)
	}
	after := NewHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "[")
		panic(http.ErrAbortHandler)
	}))
	if _, err := after.Jobs(testContext(t)); err == nil {
		t.Error("an answer that broke off is no error")
	}
}

// flaky serves the events of one job in pieces: each connection gets those of
// the next piece and is cut, in the middle of an event where the piece says so.
type flaky struct {
	pieces []string
	asked  []string
	state  string
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasSuffix(r.URL.Path, "/events") {
		_ = json.NewEncoder(w).Encode(Job{ID: "j", State: f.state})
		return
	}
	f.asked = append(f.asked, r.URL.RawQuery)
	if len(f.pieces) == 0 {
		return
	}
	piece := f.pieces[0]
	f.pieces = f.pieces[1:]
	if piece == "503" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, piece)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func event(n int, kind string) string {
	return fmt.Sprintf(": a comment\r\nid: %d\r\nevent: %s\r\ndata: {\"n\":%d,\r\ndata: \"kind\":%q}\r\n\r\n", n, kind, n, kind)
}

// servers runs h in this process and behind a real connection.
func servers(t *testing.T, h http.Handler) map[string]*Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := NewURL(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*Client{"in process": NewHandler(h), "tcp": c}
}

func TestWatchJobTakesTheThreadUpAgain(t *testing.T) {
	f := &flaky{}
	for name, c := range servers(t, f) {
		*f = flaky{state: "succeeded", pieces: []string{
			event(1, "message") + event(2, "progress") + "data: {\"n\":3,", // cut off
			"503",
			event(2, "progress") + event(3, "warning"), // one that was seen already
			"",
			event(4, "progress") + event(5, "done") + event(6, "message"),
		}}
		c.pause = func(context.Context, int) error { return nil }
		var seen []int
		j, err := c.WatchJob(testContext(t), "j", func(e JobEvent) error { seen = append(seen, e.N); return nil })
		if err != nil || j.State != "succeeded" || !slices.Equal(seen, []int{1, 2, 0, 3, 0, 4, 5}) {
			t.Errorf("%s: %+v, %v, %v", name, j, err, seen)
		}
		if want := []string{"after=0", "after=2", "after=2", "after=3", "after=3"}; !slices.Equal(f.asked, want) {
			t.Errorf("%s: asked %q, want %q", name, f.asked, want)
		}
	}
}

func TestWatchJobGivesUp(t *testing.T) {
	f := &flaky{state: "running"}
	c := NewHandler(f)
	pauses := 0
	c.pause = func(context.Context, int) error { pauses++; return nil }
	if _, err := c.WatchJob(testContext(t), "j", nil); err == nil {
		t.Error("no error")
	}
	if pauses != maxIdleAttempts || len(f.asked) != maxIdleAttempts+1 {
		t.Errorf("asked %d times with %d pauses", len(f.asked), pauses)
	}
}

func TestWatchJobOfAServerThatForgotTheEvents(t *testing.T) {
	f := &flaky{state: "failed"}
	c := NewHandler(f)
	c.pause = func(context.Context, int) error { return nil }
	if j, err := c.WatchJob(testContext(t), "j", nil); err != nil || j.State != "failed" {
		t.Errorf("%+v, %v", j, err)
	}
}

func TestWatchJobOfNoJob(t *testing.T) {
	c := NewHandler(reply(404, `{"title":"Not Found","detail":"find job: there is none","exit":1}`))
	c.pause = func(context.Context, int) error { t.Error("asked again"); return nil }
	var e *Error
	if _, err := c.WatchJob(testContext(t), "j", nil); !errors.As(err, &e) || e.Status != 404 {
		t.Errorf("got %v", err)
	}
}

func TestEventsAreBounded(t *testing.T) {
	for name, r := range map[string]io.Reader{
		"a line":   io.MultiReader(strings.NewReader("data: "), zeros{}),
		"an event": &repeat{"data: " + strings.Repeat("x", 1000) + "\n"},
	} {
		if err := readEvents(r, func([]byte) error { return nil }); !errors.Is(err, errTooLong) {
			t.Errorf("%s without end: %v", name, err)
		}
	}
}

type repeat struct{ s string }

func (r *repeat) Read(p []byte) (int, error) { return copy(p, r.s[:min(len(r.s), len(p))]), nil }

func TestUnixSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Skipf("no unix sockets here: %v", err)
	}
	srv := &http.Server{Handler: reply(200, `[{"id":"j"}]`)}
	t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.Serve(l) }()
	viaURL, err := NewURL("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Client{NewUnix(socket), viaURL} {
		if jobs, err := c.Jobs(testContext(t)); err != nil || len(jobs) != 1 {
			t.Errorf("%v, %v", jobs, err)
		}
		_ = c.Close()
	}
}

func TestNewURL(t *testing.T) {
	for raw, ok := range map[string]bool{
		"https://backup.example:8443": true, "https://backup.example/prefix/": true, "http://localhost:1": true,
		"http://127.0.0.1:1": true, "http://[::1]:1": true, "unix:///run/s": true,
		"http://backup.example": false, "http://127.0.0.1.example": false, "ftp://x": false, "backup.example": false,
		"": false, "unix://run/s": false, "https://": false, "https:x": false, "://": false,
	} {
		if _, err := NewURL(raw); (err == nil) != ok {
			t.Errorf("NewURL(%q): %v", raw, err)
		}
	}
	_, err := NewURL("ftp://me:hunter2@x")
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	reached := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	t.Cleanup(other.Close)
	srv := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	t.Cleanup(srv.Close)
	c, err := NewURL(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddSecret(testContext(t), SecretAdd{Data: []byte("x")}); err == nil || reached {
		t.Errorf("%v, reached the other server: %v", err, reached)
	}
}

// recorder keeps the bytes of a request's body without copying them.
type recorder struct{ body io.ReadCloser }

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.body = req.Body
	_, _ = io.ReadAll(req.Body)
	_ = req.Body.Close()
	return nil, errors.New("no answer")
}

func TestRequestsAreWiped(t *testing.T) {
	r := &recorder{}
	c, err := New(r, "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	body := &wipedBody{r: bytes.NewReader([]byte("secret")), b: []byte("secret")}
	kept := body.b
	if err := body.Close(); err != nil || !bytes.Equal(kept, make([]byte, 6)) {
		t.Errorf("%v, %q", err, kept)
	}
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("got %v", err)
	}
	if _, err := c.AddSecret(testContext(t), SecretAdd{Data: []byte("hunter2")}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
	if w, ok := r.body.(*wipedBody); !ok || w.b != nil {
		t.Errorf("the request's body is a %T that is not wiped", r.body)
	}
}

func FuzzReadEvents(f *testing.F) {
	for _, s := range []string{event(1, "done"), "data\n\n", "data:\ndata:\n\n", ":\n", "data: x", "\r\n\r\n", "id: 1\nevent: x\n\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		err := readEvents(bytes.NewReader(b), func(data []byte) error {
			total += len(data) + 1
			return nil
		})
		if err != nil || total > len(b) {
			t.Errorf("%d bytes of data from %d bytes, %v", total, len(b), err)
		}
	})
}

func FuzzProblem(f *testing.F) {
	f.Add([]byte(`{"title":"x","exit":4,"items":["a"],"errors":[{"message":"m","location":"l","value":"v"}]}`))
	f.Add([]byte(`{`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		resp := &http.Response{StatusCode: 409, Body: io.NopCloser(bytes.NewReader(b))}
		e := problem(resp, "GET", "/v1/jobs")
		if e.Exit < 1 || e.Exit > 255 || e.Status != 409 || e.Error() == "" {
			t.Errorf("%+v", e)
		}
	})
}
