package api

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestRestoreTo: a disk's bytes count only with what is said behind them, in
// this process and behind a real connection.
func TestRestoreTo(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	var size, outcome string
	var send int
	var broken bool
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if size != "" {
			w.Header().Set(SizeHeader, size)
		}
		_ = http.NewResponseController(w).Flush()
		for p := content[:send]; len(p) > 0; p = p[min(len(p), 100_000):] {
			_, _ = w.Write(p[:min(len(p), 100_000)])
		}
		if broken {
			panic(http.ErrAbortHandler)
		}
		if outcome != "" {
			w.Header().Set(http.TrailerPrefix+OutcomeTrailer, outcome)
		}
	})
	const all = "1048576"
	for name, c := range servers(t, h) {
		for _, k := range []struct {
			what          string
			size, outcome string
			send          int
			broken        bool
			ok            bool
			exit          int
		}{
			{"all of it", all, `{"exit":0}`, len(content), false, true, 0},
			{"all of it, not proven", all, `{"exit":3}`, len(content), false, true, 3},
			{"nothing", "0", `{"exit":0}`, 0, false, true, 0},
			{"without an outcome", all, "", len(content), false, false, 0},
			{"an outcome that is none", all, "{", len(content), false, false, 0},
			{"short", all, `{"exit":0}`, 1000, false, false, 0},
			{"damage", all, `{"exit":6,"error":{"title":"x","detail":"damaged","exit":6}}`, 1000, false, false, 6},
			{"broken off", all, "", 200_000, true, false, 0},
			{"without a size", "", `{"exit":0}`, len(content), false, false, 0},
			{"a size that is none", "-1", `{"exit":0}`, 0, false, false, 0},
		} {
			size, outcome, send, broken = k.size, k.outcome, k.send, k.broken
			var out bytes.Buffer
			var told int64 = -1
			got, err := c.RestoreTo(testContext(t), StreamRequest{Point: "p"}, &out, func(n int64) { told = n })
			if (err == nil) != k.ok || got.Exit != k.exit {
				t.Errorf("%s, %s: %+v, %v", name, k.what, got, err)
			}
			if k.ok && (out.Len() != k.send || told != int64(k.send)) {
				t.Errorf("%s, %s: %d bytes, told %d", name, k.what, out.Len(), told)
			}
			var e *Error
			if k.exit == 6 && (!errors.As(err, &e) || e.Detail != "damaged") {
				t.Errorf("%s, %s: %v", name, k.what, err)
			}
		}
		size, outcome, send, broken = all, `{"exit":0}`, len(content), false
		if _, err := c.RestoreTo(testContext(t), StreamRequest{}, failingWriter{}, nil); !errors.Is(err, errNoRoom) {
			t.Errorf("%s: a writer that fails: %v", name, err)
		}
	}
	c := NewHandler(reply(409, `{"title":"x","detail":"no","exit":7}`))
	var e *Error
	if _, err := c.RestoreTo(testContext(t), StreamRequest{}, io.Discard, nil); !errors.As(err, &e) || e.Exit != 7 || !strings.Contains(err.Error(), "no") {
		t.Errorf("refused: %v", err)
	}
}

var errNoRoom = errors.New("no room")

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errNoRoom }
