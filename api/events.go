package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	// maxEventBytes bounds one event of a job.
	maxEventBytes = 1 << 20
	// maxIdleAttempts is how often in a row a job's events may be asked for
	// without learning anything new.
	maxIdleAttempts = 8
)

// WatchJob follows a job to its end, calls fn for each of its events in order
// and exactly once, and returns the job as it ended. When the connection is
// lost it says so in a warning with the number 0 and takes the thread up again
// after the last event it has seen. When fn
// or ctx ends the watching, the job goes on.
func (c *Client) WatchJob(ctx context.Context, id string, fn func(JobEvent) error) (Job, error) {
	return c.WatchJobAfter(ctx, id, 0, fn)
}

// WatchJobAfter is WatchJob that starts after the event with the number after.
func (c *Client) WatchJobAfter(ctx context.Context, id string, after int, fn func(JobEvent) error) (Job, error) {
	idle := 0
	for {
		before := after
		done, err := c.followJob(ctx, id, &after, fn)
		if after > before {
			idle = 0
		}
		var stop *stopError
		var refused *Error
		switch {
		case errors.As(err, &stop):
			return Job{}, stop.err
		case ctx.Err() != nil:
			return Job{}, fmt.Errorf("watch job %s: %w", id, ctx.Err())
		case errors.As(err, &refused) && refused.Status < 500:
			return Job{}, err
		}
		if done {
			return c.Job(ctx, id)
		}
		if err == nil && after == before {
			// It has nothing more to say: a server that was started anew has
			// forgotten the events.
			if j, err := c.Job(ctx, id); err == nil && jobEnded(j) {
				return j, nil
			}
		}
		if idle++; idle > maxIdleAttempts {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return Job{}, fmt.Errorf("watch job %s: %w", id, err)
		}
		if err != nil && idle == 2 && fn != nil {
			// Number 0: it is the client's word, not an event of the job.
			if err := fn(JobEvent{Time: time.Now().UTC(), Kind: "warning", Message: "the connection to the server is lost; trying again"}); err != nil {
				return Job{}, err
			}
		}
		if err := c.pause(ctx, idle); err != nil {
			return Job{}, fmt.Errorf("watch job %s: %w", id, err)
		}
	}
}

func jobEnded(j Job) bool {
	return j.State == "succeeded" || j.State == "failed" || j.State == "canceled"
}

// pauseBefore waits 100 ms, 200 ms, … up to 5 s.
func pauseBefore(ctx context.Context, n int) error {
	d := min(100*time.Millisecond<<min(n-1, 10), 5*time.Second)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// stopError is the error with which the caller's function ended the watching.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }
func (e *stopError) Unwrap() error { return e.err }

// followJob reads one stream of events and reports whether the job is done.
func (c *Client) followJob(ctx context.Context, id string, after *int, fn func(JobEvent) error) (bool, error) {
	resp, err := c.do(ctx, http.MethodGet, "text/event-stream", nil,
		query("after", fmt.Sprint(*after)), "jobs", id, "events")
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	done := false
	err = readEvents(resp.Body, func(data []byte) error {
		var e JobEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		if e.N <= *after {
			return nil // seen before the connection was lost
		}
		*after = e.N
		if fn != nil {
			if err := fn(e); err != nil {
				return &stopError{err}
			}
		}
		if e.Kind == "done" {
			done = true
			return io.EOF
		}
		return nil
	})
	if errors.Is(err, io.EOF) && done {
		err = nil
	}
	return done, err
}

// readEvents reads a text/event-stream (WHATWG HTML, "server-sent events") and
// calls fn with the data of each event that has some; data is valid during the
// call. Names and ids of events are passed over. It ends with fn's first
// error, or with nil at the end of the stream; an event that the stream's end
// cuts off is dropped, as the standard says.
func readEvents(r io.Reader, fn func(data []byte) error) error {
	br := bufio.NewReaderSize(r, 32<<10)
	var data []byte
	have := false
	for {
		line, err := readLine(br)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if len(line) == 0 {
			if have {
				if err := fn(data); err != nil {
					return err
				}
			}
			data, have = data[:0], false
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		if string(field) != "data" {
			continue
		}
		value = bytes.TrimPrefix(value, []byte(" "))
		if len(data)+len(value)+1 > maxEventBytes {
			return fmt.Errorf("read an event: %w", errTooLong)
		}
		if have {
			data = append(data, '\n')
		}
		data = append(data, value...)
		have = true
	}
}

// readLine reads a line that ends with LF or CR LF, without its end.
func readLine(br *bufio.Reader) ([]byte, error) {
	var long []byte
	for {
		part, err := br.ReadSlice('\n')
		if len(long)+len(part) > maxEventBytes {
			return nil, fmt.Errorf("read an event: %w", errTooLong)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			long = append(long, part...)
			continue
		}
		if err != nil {
			return nil, err
		}
		line := part
		if long != nil {
			line = append(long, part...)
		}
		return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
	}
}
