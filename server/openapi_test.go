package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
)

var errNothing = errors.New("nothing is there")

// empty is a server without anything behind it but an audit log.
func empty(t *testing.T) *Server {
	t.Helper()
	key, err := envelope.GenerateSigningKey(envelope.RoleCustodian)
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(t.TempDir(), key, envelope.KeySet{key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	return New(Deps{
		Catalog:    func(context.Context) (*catalog.Catalog, error) { return nil, errNothing },
		Repository: func(context.Context) (*repository.Repository, error) { return nil, errNothing },
		Manager:    func(context.Context) (keymanager.Manager, error) { return nil, keymanager.ErrSealed },
		Audit:      log, Locks: job.NewLocks(""), Software: "test",
	})
}

func ask(s *Server, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestOpenAPIIsInStepWithTheDocument compares /openapi.json with docs/api.md.
func TestOpenAPIIsInStepWithTheDocument(t *testing.T) {
	text, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("`(GET|POST|DELETE|PUT|PATCH) (/v1/[^`?]*)").FindAllStringSubmatch(string(text), -1) {
		documented[m[1]+" "+m[2]] = true
	}
	w := ask(empty(t), "GET", "/openapi.json", "")
	var doc struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %v", w.Code, err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("version %q", doc.OpenAPI)
	}
	served := map[string]bool{}
	for path, methods := range doc.Paths {
		for method := range methods {
			served[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, p := range slices.Sorted(maps.Keys(documented)) {
		if !served[p] {
			t.Errorf("docs/api.md has %s, the API does not", p)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(served)) {
		if !documented[p] {
			t.Errorf("the API has %s, docs/api.md does not", p)
		}
	}
	if len(served) < 25 {
		t.Errorf("only %d operations", len(served))
	}
	// Every reference leads somewhere, and the wire types are the API's.
	var all map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &all); err != nil {
		t.Fatal(err)
	}
	schemas := all["components"].(map[string]any)["schemas"].(map[string]any)
	for _, m := range regexp.MustCompile(`"#/components/schemas/([^"]+)"`).FindAllSubmatch(w.Body.Bytes(), -1) {
		if schemas[string(m[1])] == nil {
			t.Errorf("schema %s is not there", m[1])
		}
	}
	for _, name := range []string{"Machine", "MachineDetail", "Point", "Job", "JobEvent", "Secret", "SecretAdd", "SecretAddResult", "Released", "Status", "Problem"} {
		if schemas[name] == nil {
			t.Errorf("schema %s is not there", name)
		}
	}
	for _, id := range []string{"PostV1Secrets"} {
		if bytes.Contains(w.Body.Bytes(), []byte(id)) {
			t.Errorf("an operation is called %s", id)
		}
	}
}

// Every parameter of a path is declared, or its handler never gets it: a type
// that is embedded and not exported declares none.
func TestPathParametersAreFilled(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name, In string }
		}
	}
	if err := json.Unmarshal(ask(empty(t), "GET", "/openapi.json", "").Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	for path, methods := range doc.Paths {
		for _, m := range regexp.MustCompile(`\{([^}]+)\}`).FindAllStringSubmatch(path, -1) {
			for method, o := range methods {
				n++
				if !slices.ContainsFunc(o.Parameters, func(p struct{ Name, In string }) bool { return p.In == "path" && p.Name == m[1] }) {
					t.Errorf("%s %s does not read {%s}", method, path, m[1])
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d parameters", n)
	}
}

// TestProblemsRepeatNoSecret sends secrets in requests that are wrong.
func TestProblemsRepeatNoSecret(t *testing.T) {
	const secret, encoded = "hunter2-hunter2", "aHVudGVyMi1odW50ZXIy"
	s := empty(t)
	for name, body := range map[string]string{
		"not base64":    `{"machine":"web01","kind":"passphrase","data":"` + secret + `!!"}`,
		"not JSON":      `{"machine":"web01","kind":"passphrase","data":` + secret + `}`,
		"wrong type":    `{"machine":"web01","kind":["` + secret + `"],"data":"` + encoded + `"}`,
		"unknown kind":  `{"machine":"web01","kind":"` + secret + `","data":"` + encoded + `"}`,
		"no machine":    `{"kind":"passphrase","data":"` + encoded + `"}`,
		"cut off":       `{"machine":"web01","kind":"passphrase","data":"` + encoded,
		"no catalog":    `{"machine":"web01","kind":"passphrase","data":"` + encoded + `"}`,
		"two intents":   `{"machine":"web01","kind":"passphrase","data":"` + encoded + `","secret":"x","new":true}`,
		"empty":         `{"machine":"web01","kind":"passphrase","data":""}`,
		"unknown field": `{"machine":"web01","kind":"passphrase","data":"` + encoded + `","` + secret + `":"x"}`,
	} {
		w := ask(s, "POST", "/v1/secrets", body)
		if w.Code < 400 || strings.Contains(w.Body.String(), secret) || strings.Contains(w.Body.String(), encoded) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	if err := s.f.Audit.List(context.Background(), 0, func(_ int64, e audit.Event) error {
		raw, err := json.Marshal(e)
		if bytes.Contains(raw, []byte(secret)) || bytes.Contains(raw, []byte(encoded)) {
			t.Errorf("the audit log has %s", raw)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// Elsewhere too, values are not repeated: people mistake fields.
	for _, r := range [][2]string{
		{"/v1/machines", `{"name":"` + secret + ` ","disks":[]}`},
		{"/v1/secrets/x/release", `{"reason":["` + secret + `"]}`},
		{"/v1/backups", `{"machine":{"` + secret + `":1}}`},
	} {
		w := ask(s, "POST", r[0], r[1])
		if w.Code != http.StatusUnprocessableEntity && w.Code != http.StatusBadRequest || strings.Contains(w.Body.String(), secret) {
			t.Errorf("%s: %d %s", r[0], w.Code, w.Body)
		}
	}
}

func TestBodiesAreBounded(t *testing.T) {
	s := empty(t)
	long := strings.Repeat("x", 12<<20+1)
	if w := ask(s, "POST", "/v1/secrets", `{"data":"`+long+`"}`); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("secrets: %d", w.Code)
	}
	if w := ask(s, "POST", "/v1/machines", `{"name":"`+long+`"}`); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("machines: %d", w.Code)
	}
}

func TestEveryProblemIsADocument(t *testing.T) {
	s := empty(t)
	for _, k := range []struct {
		method, path, body string
		status, exit       int
	}{
		{"GET", "/v1/nothing", "", 404, api.ExitFailed},
		{"PUT", "/v1/machines", "{}", 404, api.ExitFailed},
		{"GET", "/v1/machines", "", 500, api.ExitFailed},
		{"GET", "/v1/secrets", "", 503, api.ExitFailed},
		{"POST", "/v1/machines", "", 400, api.ExitUsage},
		{"POST", "/v1/machines", `{"name":"x","disks":[]}`, 422, api.ExitUsage},
		{"GET", "/v1/jobs/job-1", "", 404, api.ExitFailed},
		{"GET", "/v1/audit?from=x", "", 422, api.ExitUsage},
		{"POST", "/v1/secrets/x/release", `{"reason":" "}`, 422, api.ExitUsage},
	} {
		w := ask(s, k.method, k.path, k.body)
		var p api.Error
		err := json.Unmarshal(w.Body.Bytes(), &p)
		if err != nil || w.Code != k.status || p.Status != k.status || p.Exit != k.exit || p.Title == "" || p.Detail == "" {
			t.Errorf("%s %s: %d %s %v", k.method, k.path, w.Code, w.Body, err)
		}
		if ct := w.Header().Get("Content-Type"); ct != "application/problem+json" {
			t.Errorf("%s %s: %s", k.method, k.path, ct)
		}
	}
}
