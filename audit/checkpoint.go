package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is a signed tree head: what the log was when it had Size entries.
type Checkpoint struct {
	Size      int64     `json:"size"`
	Bytes     int64     `json:"bytes"` // of events.jsonl
	Root      tlog.Hash `json:"root"`
	Time      time.Time `json:"time"`
	Key       string    `json:"key"`
	Signature []byte    `json:"signature"`
}

// message is what is signed (docs/spec/audit.md, Checkpoint).
func (c Checkpoint) message() []byte {
	return fmt.Appendf(nil, "lockstep audit checkpoint v1\n%d\n%d\n%s\n%s\n",
		c.Size, c.Bytes, c.Root, c.Time.UTC().Format(time.RFC3339Nano))
}

func parseCheckpoint(line []byte) (Checkpoint, error) {
	var c Checkpoint
	if err := json.Unmarshal(line, &c); err != nil {
		return Checkpoint{}, fmt.Errorf("not a checkpoint: %w", err)
	}
	if c.Size <= 0 || c.Bytes <= 0 {
		return Checkpoint{}, errors.New("not a checkpoint: it is of nothing")
	}
	return c, nil
}

// emptyRoot is the root of no entries (RFC 6962, section 2.1).
func emptyRoot() tlog.Hash { return sha256.Sum256(nil) }

// lines reads complete lines of bounded length.
type lines struct {
	br   *bufio.Reader
	end  int64 // where the last complete line ended
	torn int64 // bytes behind it, known at the end
}

func newLines(r io.Reader, limit int) *lines {
	return &lines{br: bufio.NewReaderSize(r, limit)}
}

var errLineTooLong = errors.New("line is too long")

// next gives a line without its line feed, valid until the next call; io.EOF
// at the end, errLineTooLong for a line that was skipped.
func (l *lines) next() ([]byte, error) {
	line, err := l.br.ReadSlice('\n')
	length := int64(len(line))
	tooLong := errors.Is(err, bufio.ErrBufferFull)
	for errors.Is(err, bufio.ErrBufferFull) {
		var more []byte
		more, err = l.br.ReadSlice('\n')
		length += int64(len(more))
	}
	if err != nil {
		l.torn = length
		return nil, err
	}
	l.end += length
	if tooLong {
		return nil, errLineTooLong
	}
	return line[:len(line)-1], nil
}

// lastLine gives the last complete line of f and where it ends, reading
// backwards; end is 0 if there is none.
func lastLine(f *os.File, limit int64) (line []byte, end int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	// A torn line and a whole one before it fit into two limits, unless somebody else wrote them.
	start := max(st.Size()-2*limit, 0)
	tail := make([]byte, st.Size()-start)
	if _, err := io.ReadFull(io.NewSectionReader(f, start, int64(len(tail))), tail); err != nil {
		return nil, 0, err
	}
	last := bytes.LastIndexByte(tail, '\n')
	if last < 0 {
		if start > 0 {
			return nil, 0, fmt.Errorf("%w: a line is longer than %d bytes", ErrTampered, limit)
		}
		return nil, 0, nil
	}
	begin := bytes.LastIndexByte(tail[:last], '\n') + 1
	if begin == 0 && start > 0 {
		return nil, 0, fmt.Errorf("%w: a line is longer than %d bytes", ErrTampered, limit)
	}
	return tail[begin:last], start + int64(last) + 1, nil
}
