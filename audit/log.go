package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Errors that callers act on.
var (
	// ErrTampered: the log does not continue its last checkpoint; nothing is appended to it.
	ErrTampered = errors.New("audit log was tampered with")
	ErrEvent    = errors.New("audit event is not valid")
	ErrReadOnly = errors.New("audit log was opened without a signer")
)

// ActionRepair is the action of the note that a writer leaves when it found
// what a crash had left.
const ActionRepair = "audit.repair"

const (
	eventsFile      = "events.jsonl"
	checkpointsFile = "checkpoints.jsonl"
	hashesFile      = "hashes"
	lockFile        = "lock"

	maxEventLine      = 64 << 10
	maxCheckpointLine = 4 << 10
	formatVersion     = 1
)

// Signer signs checkpoints. envelope.SigningKey is one.
type Signer interface {
	Sign(message []byte) (keyID string, signature []byte, err error)
}

// Verifier checks a signature by a trusted key. envelope.KeySet is one.
type Verifier interface {
	VerifySignature(keyID string, message, signature []byte) error
}

// Log is an audit log in a folder; docs/spec/audit.md gives its format. It
// holds no state of its own, so any number of Logs and processes may append to
// one folder. Its methods are safe for concurrent use.
type Log struct {
	dir      string
	signer   Signer
	verifier Verifier

	mu   sync.Mutex // flock does not tell goroutines of one process apart on every system
	step func(step string)
	sync func(*os.File) error
}

// entry is a line of events.jsonl.
type entry struct {
	Version int   `json:"v"`
	Index   int64 `json:"n"`
	Event   Event `json:"event"`
}

// Open opens the log in dir. With a signer the folder and its files are made
// if they are absent; without one the log can only be read.
func Open(dir string, signer Signer, verifier Verifier) (*Log, error) {
	if verifier == nil {
		return nil, errors.New("open audit log: there is no verifier")
	}
	l := &Log{dir: dir, signer: signer, verifier: verifier, step: func(string) {}, sync: (*os.File).Sync}
	if signer == nil {
		if _, err := os.Stat(l.path(eventsFile)); err != nil {
			return nil, fmt.Errorf("open audit log: %w", err)
		}
		return l, nil
	}
	if err := l.makeFiles(); err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	return l, nil
}

// Append records events, durably, and returns the index of the first of them.
// Where a writer had crashed, the note of the repair comes before it. After an
// error the events may be in the log all the same, never a part of one.
// ErrTampered: the folder is evidence; put it aside and begin a new log.
func (l *Log) Append(ctx context.Context, events ...Event) (index int64, err error) {
	if l.signer == nil {
		return 0, fmt.Errorf("append to audit log: %w", ErrReadOnly)
	}
	if len(events) == 0 {
		return 0, fmt.Errorf("append to audit log: %w: there is none", ErrEvent)
	}
	for _, e := range events {
		if err := e.check(); err != nil {
			return 0, fmt.Errorf("append to audit log: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("append to audit log: %w", err)
	}
	unlock, err := l.lock(true)
	if err != nil {
		return 0, fmt.Errorf("append to audit log: %w", err)
	}
	defer unlock()
	if index, err = l.append(ctx, events); err != nil {
		return 0, fmt.Errorf("append to audit log: %w", err)
	}
	return index, nil
}

// Head is the newest checkpoint, its signature verified; it is the one to keep
// elsewhere. An empty log has the zero Checkpoint.
func (l *Log) Head(ctx context.Context) (Checkpoint, error) {
	if err := ctx.Err(); err != nil {
		return Checkpoint{}, fmt.Errorf("read audit head: %w", err)
	}
	unlock, err := l.lock(false)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("read audit head: %w", err)
	}
	defer unlock()
	f, err := os.Open(l.path(checkpointsFile))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("read audit head: %w", err)
	}
	defer f.Close()
	c, _, err := l.lastCheckpoint(f)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("read audit head: %w", err)
	}
	return c, nil
}

// Continues tells whether the log has the entries that a checkpoint is of, as
// far as its stored hashes say; Verify reads the entries themselves. Every log
// continues the zero Checkpoint.
func (l *Log) Continues(ctx context.Context, c Checkpoint) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("compare audit log: %w", err)
	}
	if c.Size <= 0 {
		return true, nil
	}
	unlock, err := l.lock(false)
	if err != nil {
		return false, fmt.Errorf("compare audit log: %w", err)
	}
	defer unlock()
	f, err := os.Open(l.path(hashesFile))
	if err != nil {
		return false, fmt.Errorf("compare audit log: %w", err)
	}
	defer f.Close()
	t := tree{hashes: f, size: c.Size}
	root, err := t.root()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil // it is shorter
	}
	if err != nil {
		return false, fmt.Errorf("compare audit log: %w", err)
	}
	return root == c.Root, nil
}

// List calls fn for every event from index from on, oldest first. It verifies
// nothing, and stops before a line that is being written.
func (l *Log) List(ctx context.Context, from int64, fn func(index int64, e Event) error) error {
	f, err := os.Open(l.path(eventsFile))
	if err != nil {
		return fmt.Errorf("list audit log: %w", err)
	}
	defer f.Close()
	r := newLines(f, maxEventLine)
	for index := int64(0); ; index++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list audit log: %w", err)
		}
		line, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if index < from && (err == nil || errors.Is(err, errLineTooLong)) {
			continue
		}
		var e entry
		if err == nil {
			e, err = parseEntry(line)
		}
		if err != nil {
			return fmt.Errorf("list audit log: entry %d: %w", index, err)
		}
		if err := fn(index, e.Event); err != nil {
			return err
		}
	}
}

// append runs with the lock held.
func (l *Log) append(ctx context.Context, events []Event) (int64, error) {
	eventsF, err := os.OpenFile(l.path(eventsFile), os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer eventsF.Close()
	hashesF, err := os.OpenFile(l.path(hashesFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer hashesF.Close()
	checkpointsF, err := os.OpenFile(l.path(checkpointsFile), os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer checkpointsF.Close()

	head, checkpointsEnd, err := l.lastCheckpoint(checkpointsF)
	if err != nil {
		return 0, err
	}
	t := tree{hashes: hashesF, size: head.Size}
	if err := l.checkTree(ctx, &t, head, eventsF); err != nil {
		return 0, err
	}
	found, err := t.takeLines(ctx, eventsF, head.Bytes)
	if err != nil {
		return 0, err
	}
	end := head.Bytes + found.bytes

	lines, err := encode(t.size, withNote(events, found))
	if err != nil {
		return 0, err
	}
	first := t.size + int64(len(lines)-len(events))
	newEnd, err := l.writeEvents(eventsF, end, lines)
	if err != nil {
		return 0, err
	}
	for _, line := range lines {
		if err := t.add(line); err != nil {
			return 0, err
		}
	}
	return first, l.writeCheckpoint(checkpointsF, checkpointsEnd, &t, newEnd)
}

// checkTree makes sure that the stored hashes give the head's root, from the
// events if they do not by themselves.
func (l *Log) checkTree(ctx context.Context, t *tree, head Checkpoint, eventsF *os.File) error {
	st, err := eventsF.Stat()
	if err != nil {
		return err
	}
	if st.Size() < head.Bytes {
		return fmt.Errorf("%w: events.jsonl has %d bytes, the last checkpoint is of %d", ErrTampered, st.Size(), head.Bytes)
	}
	if root, err := t.root(); err == nil && root == head.Root {
		return t.cut()
	}
	t.size = 0
	found, err := t.takeLines(ctx, io.NewSectionReader(eventsF, 0, head.Bytes), 0)
	if err != nil {
		return err
	}
	root, err := t.root()
	if err != nil {
		return err
	}
	if found.bytes != head.Bytes || t.size != head.Size || root != head.Root {
		return fmt.Errorf("%w: its entries are not those of the last checkpoint", ErrTampered)
	}
	return t.cut()
}

// writeEvents puts the lines at end, over whatever a crash left there, and
// makes them durable.
func (l *Log) writeEvents(f *os.File, end int64, lines [][]byte) (newEnd int64, err error) {
	var all []byte
	for _, line := range lines {
		all = append(append(all, line...), '\n')
	}
	if err := f.Truncate(end); err != nil {
		return 0, err
	}
	l.step("write events")
	_, err = f.WriteAt(all, end)
	if err == nil {
		l.step("sync events")
		err = l.sync(f)
	}
	if err != nil {
		// Nobody knows what is on the disk now: at most lines without a
		// checkpoint, which the next writer takes over with a note.
		_ = f.Truncate(end)
		return 0, err
	}
	return end + int64(len(all)), nil
}

func (l *Log) writeCheckpoint(f *os.File, end int64, t *tree, bytes int64) error {
	root, err := t.root()
	if err != nil {
		return err
	}
	c := Checkpoint{Size: t.size, Bytes: bytes, Root: root, Time: time.Now().UTC()}
	if c.Key, c.Signature, err = l.signer.Sign(c.message()); err != nil {
		return fmt.Errorf("sign checkpoint: %w", err)
	}
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if len(line) >= maxCheckpointLine {
		return errors.New("checkpoint is too long: the key's ID or signature is")
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	l.step("write checkpoint")
	_, err = f.WriteAt(append(line, '\n'), end)
	return err
}

// lastCheckpoint gives the newest complete checkpoint and where it ends.
func (l *Log) lastCheckpoint(f *os.File) (c Checkpoint, end int64, err error) {
	line, end, err := lastLine(f, maxCheckpointLine)
	if err != nil {
		return Checkpoint{}, 0, err
	}
	if end == 0 {
		return Checkpoint{Root: emptyRoot()}, 0, nil
	}
	if c, err = parseCheckpoint(line); err != nil {
		return Checkpoint{}, 0, fmt.Errorf("%w: last checkpoint: %w", ErrTampered, err)
	}
	if err := l.verifier.VerifySignature(c.Key, c.message(), c.Signature); err != nil {
		return Checkpoint{}, 0, fmt.Errorf("%w: last checkpoint: %w", ErrTampered, err)
	}
	return c, end, nil
}

func (l *Log) makeFiles() error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	made := false
	for _, name := range []string{eventsFile, checkpointsFile, hashesFile, lockFile} {
		f, err := os.OpenFile(l.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		made = true
	}
	if !made {
		return nil
	}
	if err := syncFolder(l.dir); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(l.dir))
}

// lock takes the log for this goroutine alone, or shared with other readers.
func (l *Log) lock(exclusive bool) (unlock func(), err error) {
	l.mu.Lock()
	var f *os.File
	if exclusive {
		f, err = os.OpenFile(l.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	} else if f, err = os.Open(l.path(lockFile)); errors.Is(err, fs.ErrNotExist) {
		return l.mu.Unlock, nil // a copy of a log; nobody writes to it
	}
	if err == nil {
		if err = flock(f, exclusive); err != nil {
			f.Close()
		}
	}
	if err != nil {
		l.mu.Unlock()
		return nil, err
	}
	return func() {
		f.Close() // gives the lock back
		l.mu.Unlock()
	}, nil
}

func (l *Log) path(name string) string { return filepath.Join(l.dir, name) }

func (e Event) check() error {
	switch {
	case e.Action == "":
		return fmt.Errorf("%w: no action", ErrEvent)
	case e.Actor == "":
		return fmt.Errorf("%w: no actor", ErrEvent)
	case e.Outcome != Begun && e.Outcome != Done && e.Outcome != Refused && e.Outcome != Failed:
		return fmt.Errorf("%w: outcome %q", ErrEvent, e.Outcome)
	}
	return nil
}

// withNote puts the note of a repair before the events, if there was one.
func withNote(events []Event, found leftovers) []Event {
	if found.entries == 0 && found.torn == 0 {
		return events
	}
	note := Event{
		Actor: "system", Action: ActionRepair, Object: "audit", Outcome: Done,
		Reason: "the last writer was interrupted",
		Detail: map[string]string{
			"unsigned_entries": fmt.Sprint(found.entries),
			"torn_bytes":       fmt.Sprint(found.torn),
		},
	}
	return append([]Event{note}, events...)
}

func encode(first int64, events []Event) ([][]byte, error) {
	lines := make([][]byte, len(events))
	for i, e := range events {
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
		e.Time = e.Time.UTC()
		line, err := json.Marshal(entry{Version: formatVersion, Index: first + int64(i), Event: e})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrEvent, err)
		}
		if len(line) >= maxEventLine {
			return nil, fmt.Errorf("%w: %d bytes, less than %d are possible", ErrEvent, len(line), maxEventLine)
		}
		lines[i] = line
	}
	return lines, nil
}

func parseEntry(line []byte) (entry, error) {
	var e entry
	if err := json.Unmarshal(line, &e); err != nil {
		return entry{}, fmt.Errorf("not an entry: %w", err)
	}
	if e.Version != formatVersion {
		return entry{}, fmt.Errorf("entry of version %d, this reader knows %d", e.Version, formatVersion)
	}
	return e, nil
}

// leftovers is what lay behind a checkpoint.
type leftovers struct {
	entries int64
	bytes   int64 // of the entries
	torn    int64 // after them
}

// tree is the Merkle tree in the file of stored hashes.
type tree struct {
	hashes *os.File
	size   int64
}

// ReadHashes implements tlog.HashReader.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if _, err := t.hashes.ReadAt(out[i][:], index*tlog.HashSize); err != nil {
			return nil, fmt.Errorf("read stored hash %d: %w", index, err)
		}
	}
	return out, nil
}

func (t *tree) root() (tlog.Hash, error) {
	if t.size == 0 {
		return emptyRoot(), nil
	}
	return tlog.TreeHash(t.size, t)
}

// cut drops stored hashes of entries that are not there.
func (t *tree) cut() error {
	want := tlog.StoredHashCount(t.size) * tlog.HashSize
	st, err := t.hashes.Stat()
	if err != nil || st.Size() <= want {
		return err
	}
	return t.hashes.Truncate(want)
}

func (t *tree) add(line []byte) error {
	stored, err := tlog.StoredHashes(t.size, line, t)
	if err != nil {
		return err
	}
	var all []byte
	for _, h := range stored {
		all = append(all, h[:]...)
	}
	if _, err := t.hashes.WriteAt(all, tlog.StoredHashCount(t.size)*tlog.HashSize); err != nil {
		return fmt.Errorf("store hashes: %w", err)
	}
	t.size++
	return nil
}

// takeLines adds the complete lines of r behind offset.
func (t *tree) takeLines(ctx context.Context, r io.ReaderAt, offset int64) (leftovers, error) {
	before := t.size
	lines := newLines(io.NewSectionReader(r, offset, 1<<62), maxEventLine)
	for {
		if err := ctx.Err(); err != nil {
			return leftovers{}, err
		}
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return leftovers{entries: t.size - before, bytes: lines.end, torn: lines.torn}, nil
		}
		if errors.Is(err, errLineTooLong) {
			return leftovers{}, fmt.Errorf("%w: entry %d is longer than %d bytes", ErrTampered, t.size, maxEventLine)
		}
		if err == nil {
			err = t.add(line)
		}
		if err != nil {
			return leftovers{}, err
		}
	}
}
