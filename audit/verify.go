package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Kind of a problem; docs/spec/audit.md says when each is reported.
type Kind string

// The kinds of problems.
const (
	Malformed Kind = "malformed"
	Misplaced Kind = "misplaced"
	Edited    Kind = "edited"
	Truncated Kind = "truncated"
	Signature Kind = "signature"
	Disorder  Kind = "disorder"
	Unsigned  Kind = "unsigned"
	Torn      Kind = "torn"
	Hashes    Kind = "hashes"
)

// maxProblems bounds a report; Report.More counts the others.
const maxProblems = 100

// Problem is one thing found wrong. Index is the entry (or, for a checkpoint,
// its size) where it was found.
type Problem struct {
	Kind  Kind   `json:"kind"`
	Index int64  `json:"index"`
	Text  string `json:"text"`
}

// AfterCrash tells whether a crash alone explains the problem; the next append
// repairs it then.
func (p Problem) AfterCrash() bool {
	return p.Kind == Unsigned || p.Kind == Torn || p.Kind == Hashes
}

// Report is what Verify found.
type Report struct {
	Entries     int64     `json:"entries"`
	Signed      int64     `json:"signed"` // entries covered by a valid checkpoint that matched
	Root        tlog.Hash `json:"root"`
	Checkpoints int64     `json:"checkpoints"`
	Problems    []Problem `json:"problems"`
	More        int       `json:"more,omitempty"` // problems beyond those listed
}

// Verify reads everything and reports what does not fit together. known are
// checkpoints kept elsewhere, which the log must continue. The error is about
// reading; a log that was tampered with is a report with problems.
func (l *Log) Verify(ctx context.Context, known ...Checkpoint) (Report, error) {
	unlock, err := l.lock(false)
	if err != nil {
		return Report{}, fmt.Errorf("verify audit log: %w", err)
	}
	defer unlock()
	v := verification{log: l}
	for _, k := range known {
		if k.Size > 0 { // the head of an empty log says nothing
			v.known = append(v.known, k)
		}
	}
	if err := v.run(ctx); err != nil {
		return Report{}, fmt.Errorf("verify audit log: %w", err)
	}
	return v.report, nil
}

type verification struct {
	log    *Log
	report Report
	known  []Checkpoint

	checkpoints *lines
	cp          Checkpoint // the next to compare, if more
	more        bool

	tree    frontier
	end     int64 // of the last entry read
	shift   int64 // of indexes against places, so far
	broken  bool  // a checkpoint did not match
	hashes  *bufio.Reader
	badHash bool
}

func (v *verification) run(ctx context.Context) error {
	events, err := os.Open(v.log.path(eventsFile))
	if err != nil {
		return err
	}
	defer events.Close()
	checkpoints, err := openOptional(v.log.path(checkpointsFile))
	if err != nil {
		return err
	}
	defer checkpoints.Close()
	hashes, err := openOptional(v.log.path(hashesFile))
	if err != nil {
		return err
	}
	defer hashes.Close()
	v.hashes = bufio.NewReaderSize(hashes, 64<<10)

	slices.SortStableFunc(v.known, func(a, b Checkpoint) int { return int(max(min(a.Size-b.Size, 1), -1)) })
	for _, k := range v.known {
		if err := v.log.verifier.VerifySignature(k.Key, k.message(), k.Signature); err != nil {
			v.problem(Signature, k.Size, "checkpoint kept elsewhere: "+err.Error())
		}
	}
	v.checkpoints = newLines(checkpoints, maxCheckpointLine)
	if err := v.advance(); err != nil {
		return err
	}
	entries := newLines(events, maxEventLine)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		line, err := entries.next()
		if errors.Is(err, io.EOF) {
			return v.finish(entries.torn)
		}
		if err != nil && !errors.Is(err, errLineTooLong) {
			return err
		}
		v.end = entries.end
		if err := v.entry(line, err != nil); err != nil {
			return err
		}
	}
}

// entry takes the next entry; one that is too long comes as no bytes, which
// no checkpoint can match.
func (v *verification) entry(line []byte, tooLong bool) error {
	place := v.report.Entries
	v.report.Entries++
	if tooLong {
		v.problem(Malformed, place, fmt.Sprintf("longer than %d bytes", maxEventLine))
	} else if e, err := parseEntry(line); err != nil {
		v.problem(Malformed, place, err.Error())
	} else if e.Index-place != v.shift {
		v.shift = e.Index - place
		v.problem(Misplaced, place, fmt.Sprintf("numbered %d: entries were removed, inserted or reordered", e.Index))
	}
	for _, h := range v.tree.add(tlog.RecordHash(line)) {
		if v.badHash {
			break
		}
		var stored tlog.Hash
		if _, err := io.ReadFull(v.hashes, stored[:]); err != nil || stored != h {
			v.badHash = true
			v.problem(Hashes, place, "stored hash is missing or differs from the entry's")
		}
	}
	for len(v.known) > 0 && v.known[0].Size == v.report.Entries {
		v.compare(v.known[0], "checkpoint kept elsewhere")
		v.known = v.known[1:]
	}
	for v.more && v.cp.Size == v.report.Entries {
		if v.compare(v.cp, "checkpoint") {
			v.report.Signed = v.cp.Size
		}
		if err := v.advance(); err != nil {
			return err
		}
	}
	return nil
}

// compare holds the entries read so far against a checkpoint. After the first
// that differs all later ones do, and say nothing new.
func (v *verification) compare(c Checkpoint, what string) bool {
	if c.Root != v.tree.root() {
		if !v.broken {
			v.problem(Edited, c.Size, fmt.Sprintf("%s of %s does not match: an entry from %d to %d was changed",
				what, c.Time.UTC().Format("2006-01-02 15:04:05Z"), v.report.Signed, c.Size-1))
		}
		v.broken = true
		return false
	}
	if c.Bytes != v.end {
		v.problem(Disorder, c.Size, fmt.Sprintf("%s says %d bytes, its entries end at %d", what, c.Bytes, v.end))
		return false
	}
	return true
}

func (v *verification) finish(torn int64) error {
	v.report.Root = v.tree.root()
	if torn > 0 {
		v.problem(Torn, v.report.Entries, fmt.Sprintf("%d bytes of an incomplete line", torn))
	}
	longest := int64(0)
	for v.more {
		longest = max(longest, v.cp.Size)
		if err := v.advance(); err != nil {
			return err
		}
	}
	if longest > v.report.Entries {
		v.problem(Truncated, v.report.Entries, fmt.Sprintf("there are %d entries, a checkpoint is of %d", v.report.Entries, longest))
	}
	for _, k := range v.known {
		if k.Size > v.report.Entries {
			v.problem(Truncated, v.report.Entries, fmt.Sprintf("there are %d entries, a checkpoint kept elsewhere is of %d", v.report.Entries, k.Size))
		}
	}
	if v.report.Signed < v.report.Entries && !v.broken {
		v.problem(Unsigned, v.report.Signed, fmt.Sprintf("the last %d entries are not covered by a valid checkpoint", v.report.Entries-v.report.Signed))
	}
	if _, err := v.hashes.ReadByte(); !v.badHash && !errors.Is(err, io.EOF) {
		v.problem(Hashes, v.report.Entries, "more stored hashes than entries")
	}
	return nil
}

// advance takes the next checkpoint whose signature is good. Sizes that
// decrease are reported and skipped: they can match nothing any more.
func (v *verification) advance() error {
	for {
		line, err := v.checkpoints.next()
		if errors.Is(err, io.EOF) {
			v.more = false
			return nil
		}
		if err != nil && !errors.Is(err, errLineTooLong) {
			return err
		}
		v.report.Checkpoints++
		var c Checkpoint
		if err == nil {
			c, err = parseCheckpoint(line)
		}
		if err != nil {
			v.problem(Malformed, v.cp.Size, "checkpoint: "+err.Error())
			continue
		}
		if err := v.log.verifier.VerifySignature(c.Key, c.message(), c.Signature); err != nil {
			v.problem(Signature, c.Size, err.Error())
			continue
		}
		if c.Size < v.cp.Size {
			v.problem(Disorder, c.Size, fmt.Sprintf("checkpoint of %d entries behind one of %d", c.Size, v.cp.Size))
			continue
		}
		v.cp, v.more = c, true
		return nil
	}
}

func (v *verification) problem(kind Kind, index int64, text string) {
	if len(v.report.Problems) == maxProblems {
		v.report.More++
		return
	}
	v.report.Problems = append(v.report.Problems, Problem{Kind: kind, Index: index, Text: text})
}

// frontier is a Merkle tree of which only the complete subtrees at its right
// edge are kept: a few hashes for any number of entries.
type frontier struct {
	size int64
	edge []tlog.Hash // largest subtree first
}

// add appends a leaf and returns what tlog would store for it: the leaf and
// every subtree that it completes.
func (f *frontier) add(leaf tlog.Hash) []tlog.Hash {
	stored := []tlog.Hash{leaf}
	h := leaf
	for n := f.size; n&1 == 1; n >>= 1 {
		last := len(f.edge) - 1
		h = tlog.NodeHash(f.edge[last], h)
		f.edge = f.edge[:last]
		stored = append(stored, h)
	}
	f.edge = append(f.edge, h)
	f.size++
	return stored
}

func (f *frontier) root() tlog.Hash {
	if f.size == 0 {
		return emptyRoot()
	}
	h := f.edge[len(f.edge)-1]
	for i := len(f.edge) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.edge[i], h)
	}
	return h
}

// openOptional opens a file whose absence is a finding, not a failure.
func openOptional(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Open(os.DevNull)
	}
	return f, err
}
