package gcs

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// resumable is a strict double of the part of the JSON API that resumable
// uploads need, after "Resumable uploads" and "Performing resumable uploads" in
// the service's documentation: bytes at an offset that was persisted already
// are ignored, a gap is refused, chunks but the last are multiples of 256 KiB,
// the precondition is looked at when the upload begins and when it ends, and a
// complete upload answers with its object again.
type resumable struct {
	t       *testing.T
	mu      sync.Mutex
	objects map[string]*object // bucket/name
	uploads map[string]*session
}

type object struct {
	data     []byte
	metadata map[string]string
}

type session struct {
	name     string
	object   object
	complete bool
}

func newResumable(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(&resumable{t: t, objects: map[string]*object{}, uploads: map[string]*session{}})
	t.Cleanup(server.Close)
	return server.URL
}

func (d *resumable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := r.URL.Query()
	bucket, name, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/upload"), "/storage/v1/b/"), "/o")
	name = path.Join(bucket, name)
	switch {
	case q.Has("upload_id"):
		d.chunk(w, r, d.uploads[q.Get("upload_id")])
	case r.Method == http.MethodPost:
		var meta struct {
			Name     string
			Metadata map[string]string
		}
		if err := json.NewDecoder(r.Body).Decode(&meta); err != nil || q.Get("uploadType") != "resumable" || q.Get("ifGenerationMatch") != "0" {
			d.t.Errorf("start of an upload: %v, %v", q, err)
		}
		s := &session{name: path.Join(bucket, meta.Name), object: object{metadata: meta.Metadata}}
		if d.objects[s.name] != nil {
			refuse(w, http.StatusPreconditionFailed)
			return
		}
		id := strconv.Itoa(len(d.uploads))
		d.uploads[id] = s
		w.Header().Set("Location", "http://"+r.Host+r.URL.Path+"?uploadType=resumable&upload_id="+id)
	case strings.HasSuffix(r.URL.Path, "/o"):
		answer(w, map[string]any{})
	case d.objects[name] == nil:
		refuse(w, http.StatusNotFound)
	case q.Get("alt") == "media":
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(d.objects[name].data)))
	default:
		answer(w, map[string]any{"size": strconv.Itoa(len(d.objects[name].data)), "metadata": d.objects[name].metadata})
	}
}

func (d *resumable) chunk(w http.ResponseWriter, r *http.Request, s *session) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if s == nil {
		refuse(w, http.StatusNotFound)
		return
	}
	given, total, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes "), "/")
	var first, last int
	if given != "*" {
		if _, err := fmt.Sscanf(given, "%d-%d", &first, &last); err != nil || last-first+1 != len(body) {
			d.t.Errorf("chunk of %d bytes says %q", len(body), given)
		}
	}
	have := len(s.object.data)
	if !s.complete {
		if first > have {
			refuse(w, http.StatusServiceUnavailable)
			return
		}
		if total == "*" && len(body)%(256<<10) != 0 {
			d.t.Errorf("chunk of %d bytes, not the last", len(body))
		}
		s.object.data = append(s.object.data, body[min(len(body), have-first):]...)
	}
	if total == "*" && !s.complete {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(s.object.data)-1))
		w.Header().Set("X-Http-Status-Code-Override", "308")
		if r.Header.Get("X-GUploader-No-308") != "yes" {
			w.WriteHeader(http.StatusPermanentRedirect)
		}
		return
	}
	if !s.complete {
		if total != strconv.Itoa(len(s.object.data)) {
			d.t.Errorf("last chunk says %s bytes, came %d", total, len(s.object.data))
		}
		if d.objects[s.name] != nil {
			refuse(w, http.StatusPreconditionFailed)
			return
		}
		d.objects[s.name], s.complete = &s.object, true
	}
	answer(w, map[string]any{"generation": "1"})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%d,"errors":[{"reason":"test"}]}}`, status)
}
