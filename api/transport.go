package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// handlerTransport calls a handler in this process. The handler runs in a
// goroutine of its own, and what it writes goes through a pipe: nothing is
// held back, and a reader that goes away cancels the handler's context.
type handlerTransport struct{ h http.Handler }

func (t handlerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	sreq := req.Clone(ctx)
	sreq.RequestURI = req.URL.RequestURI()
	sreq.RemoteAddr = "in-process"
	sreq.Host = req.URL.Host
	sreq.Proto, sreq.ProtoMajor, sreq.ProtoMinor = "HTTP/1.1", 1, 1
	if sreq.Body == nil {
		sreq.Body = http.NoBody
	}
	pr, pw := io.Pipe()
	w := &pipeWriter{
		header: http.Header{}, pw: pw, started: make(chan struct{}),
		resp: &http.Response{
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1,
			Request: req, Body: &pipeBody{pr, cancel},
		},
	}
	go func() {
		defer cancel()
		defer func() { _ = sreq.Body.Close() }()
		defer func() {
			if p := recover(); p != nil {
				w.fail(p)
				return
			}
			w.WriteHeader(http.StatusOK)
			w.trail()
			_ = pw.Close()
		}()
		t.h.ServeHTTP(w, sreq)
	}()
	select {
	case <-w.started:
		if w.err != nil {
			return nil, w.err
		}
		return w.resp, nil
	case <-req.Context().Done():
		// The handler learns it from its context; what it still writes is dropped.
		_ = pr.CloseWithError(req.Context().Err())
		return nil, req.Context().Err()
	}
}

// pipeBody is the client's side of an answer.
type pipeBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (b *pipeBody) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}

// pipeWriter is the handler's side of an answer.
type pipeWriter struct {
	header  http.Header
	pw      *io.PipeWriter
	once    sync.Once
	started chan struct{}
	resp    *http.Response // complete once started is closed, unless err is set
	err     error
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	if status < 200 { // informational; the answer follows
		return
	}
	w.once.Do(func() {
		w.resp.StatusCode = status
		w.resp.Status = fmt.Sprintf("%d %s", status, http.StatusText(status))
		w.resp.Header = w.header.Clone()
		if n, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
			w.resp.ContentLength = n
		}
		close(w.started)
	})
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.pw.Write(p)
}

// trail hands on what the handler put behind its answer; who reads to the end
// of the answer finds it there, as with a server.
func (w *pipeWriter) trail() {
	for key, values := range w.header {
		if name, ok := strings.CutPrefix(key, http.TrailerPrefix); ok {
			if w.resp.Trailer == nil {
				w.resp.Trailer = http.Header{}
			}
			w.resp.Trailer[http.CanonicalHeaderKey(name)] = values
		}
	}
}

// Flush sends the header; the pipe holds nothing back.
func (w *pipeWriter) Flush() { w.WriteHeader(http.StatusOK) }

// SetWriteDeadline accepts every deadline: in one process a reader that went
// away has closed the pipe, which ends the write at once.
func (w *pipeWriter) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline accepts every deadline: the whole request is in memory.
func (w *pipeWriter) SetReadDeadline(time.Time) error { return nil }

// fail ends the answer after the handler panicked, as a server would.
func (w *pipeWriter) fail(p any) {
	err := errors.New("the handler broke the answer off")
	if p != http.ErrAbortHandler {
		err = fmt.Errorf("the handler failed: %v", p)
	}
	w.once.Do(func() {
		w.err = err
		close(w.started)
	})
	_ = w.pw.CloseWithError(err)
}
