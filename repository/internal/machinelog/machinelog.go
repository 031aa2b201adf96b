// Package machinelog is a machine's log: commits, deletions and fences, one
// behind the other. docs/spec/repository.md, section 6.
//
// Its invariant: what Read returned once never changes, it only grows.
package machinelog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/repository/internal/trust"
	"github.com/lockstep-backup/lockstep/store"
)

// PayloadType is the DSSE payload type of an entry.
const PayloadType = "application/vnd.lockstep.log+json"

// Kinds of entries.
const (
	Commit = "commit"
	Delete = "delete"
	Fence  = "fence"
)

// FeatureReplicas is named in Entry.Must: readers must look for replicas.
const FeatureReplicas = "replicas"

// known are the features that entries may require of a reader.
var known = []string{FeatureReplicas}

// Entry is one entry of a machine log. A commit entry is the commit.
type Entry struct {
	Machine  string    `json:"machine"`
	N        int64     `json:"n"`
	Kind     string    `json:"kind"`
	Point    string    `json:"point,omitempty"`
	Manifest string    `json:"manifest,omitempty"` // digest of the stored manifest
	Parent   string    `json:"parent,omitempty"`
	Previous string    `json:"previous,omitempty"` // digest of the stored entry before
	Time     time.Time `json:"time"`
	Reason   string    `json:"reason,omitempty"`
	// BirthField is the writer's birth where it is not N; see Birth.
	BirthField *int64 `json:"birth,omitempty"`
	// Leftovers, of a fence: objects of births up to this one may vanish.
	Leftovers *int64   `json:"leftovers,omitempty"`
	Must      []string `json:"must,omitempty"`
	// Origin, of a copied recovery point: the repository that its manifest names.
	Origin string `json:"origin,omitempty"`
}

// Birth of a commit: the number in the names of what its writer stored.
func (e *Entry) Birth() int64 {
	if e.BirthField != nil {
		return *e.BirthField
	}
	return e.N
}

// SetBirth records a commit's birth; N must be set.
func (e *Entry) SetBirth(birth int64) {
	e.BirthField = nil
	if birth != e.N {
		e.BirthField = &birth
	}
}

// Record is an entry as read; damaged entries keep their place: then Err is
// set, and of Entry only N.
type Record struct {
	Entry
	Digest string // of the stored object
	Writer envelope.KeyID
	Err    error
}

// Log reads and writes one machine's log. Safe for concurrent use.
type Log struct {
	st    store.Store
	keys  *machinekey.Keys
	trust func() trust.Log
	log   *slog.Logger

	mu      sync.Mutex
	records []Record
	listed  bool  // last is known
	last    int64 // the highest number that the store listed, -1: none
	// The latest time that each writer's entries give, for revocation.
	latest map[envelope.KeyID]time.Time
}

// New makes the log of the machine whose keys these are.
func New(st store.Store, keys *machinekey.Keys, trust func() trust.Log, log *slog.Logger) *Log {
	return &Log{st: st, keys: keys, trust: trust, log: log, latest: map[envelope.KeyID]time.Time{}}
}

// maxGap bounds what a key of a large number can make a reader do.
const maxGap = 1 << 16

// rereads is how often a damaged entry is read again: a bit that flipped on the
// way must not get into the chain, where the digest of what was read would
// make every later entry look like one that follows another.
const rereads = 2

// Read reads on from what is known. What it returns is a snapshot: append-only.
func (l *Log) Read(ctx context.Context) ([]Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		n := int64(len(l.records))
		key := format.LogKey(l.keys.ID, n)
		raw, err := store.GetAll(ctx, l.st, key, 1<<20)
		if errors.Is(err, store.ErrNotExist) {
			if !l.listed {
				if err := l.list(ctx); err != nil {
					return nil, err
				}
				continue // it may have come since
			}
			if l.last <= n {
				return l.records[:n:n], nil
			}
			if l.last-n > maxGap {
				return nil, &damage.Error{Object: key, Machine: l.keys.ID, Err: fmt.Errorf("entries are missing up to number %d: %w", l.last, damage.ErrNotFound)}
			}
			// What is behind a lost entry counts all the same, or one lost object would hide recovery points.
			gap := &damage.Error{Object: key, Machine: l.keys.ID, Err: fmt.Errorf("entry is missing, later ones are there: %w", damage.ErrNotFound)}
			l.records = append(l.records, Record{Entry: Entry{N: n}, Err: gap})
			l.log.Error("machine log entry is missing", "object", key)
			continue
		}
		if err != nil {
			var large *store.TooLargeError
			if !errors.As(err, &large) {
				return nil, fmt.Errorf("read machine log: %w", err)
			}
		}
		rec := Record{Digest: trust.Digest(raw)}
		rec.Err = l.parse(&rec, raw, key, n)
		for again := 0; rec.Err != nil && again < rereads; again++ {
			store.Forget(l.st, key)
			raw, err := store.GetAll(ctx, l.st, key, 1<<20)
			if err != nil {
				if ctx.Err() != nil {
					return nil, fmt.Errorf("read machine log: %w", err)
				}
				continue
			}
			second := Record{Digest: trust.Digest(raw)}
			second.Err = l.parse(&second, raw, key, n)
			rec = second
		}
		if rec.Err != nil {
			rec.Entry = Entry{N: n}
			rec.Err = &damage.Error{Object: key, Machine: l.keys.ID, Err: rec.Err}
			l.log.Error("machine log entry is damaged", "object", key, "error", rec.Err)
		} else {
			for _, feature := range rec.Must {
				if !slices.Contains(known, feature) {
					return nil, fmt.Errorf("read machine log: %s requires feature %q: %w", key, feature, damage.ErrFormat)
				}
			}
			if rec.Time.After(l.latest[rec.Writer]) {
				l.latest[rec.Writer] = rec.Time
			}
		}
		l.records = append(l.records, rec)
	}
}

// list finds out, once, how far the log goes.
func (l *Log) list(ctx context.Context) error {
	last := int64(-1)
	prefix := format.LogPrefix(l.keys.ID)
	err := l.st.List(ctx, prefix, func(i store.Info) error {
		if n, err := format.ParseNumber(i.Key[len(prefix):]); err == nil {
			last = max(last, n)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list machine log: %w", err)
	}
	l.listed, l.last = true, last
	return nil
}

func (l *Log) parse(rec *Record, raw []byte, key string, n int64) error {
	signed, err := envelope.OpenFrame(raw, format.KindLog, l.keys.Metadata, []byte(key))
	if err != nil {
		return err
	}
	keys := l.trust()
	body, signer, err := envelope.Verify(signed, PayloadType, keys.KeySet(envelope.RoleWriter))
	if err != nil {
		return fmt.Errorf("%w: %w", damage.ErrUntrusted, err)
	}
	if err := json.Unmarshal(body, &rec.Entry); err != nil {
		return err
	}
	rec.Writer = signer
	if rec.Machine != l.keys.ID || rec.N != n {
		return fmt.Errorf("entry of machine %s, number %d: %w", rec.Machine, rec.N, format.ErrCorrupt)
	}
	if rec.Kind != Commit && rec.Kind != Delete && rec.Kind != Fence {
		return fmt.Errorf("entry of kind %q: %w", rec.Kind, damage.ErrFormat)
	}
	if b := rec.Birth(); b < 0 || b >= 1<<32 || rec.Leftovers != nil && *rec.Leftovers < 0 {
		return fmt.Errorf("entry of birth %d: %w", b, format.ErrCorrupt)
	}
	if _, revoked, _ := keys.Key(signer); revoked != nil {
		if !rec.Time.Before(*revoked) {
			return fmt.Errorf("writer key %s was revoked before: %w", signer, damage.ErrUntrusted)
		}
		// Whoever has the key can write any time; what other writers committed before it is evidence.
		for writer, t := range l.latest {
			if writer != signer && !t.Before(*revoked) {
				return fmt.Errorf("writer key %s was revoked before, as entries by %s show: %w", signer, writer, damage.ErrUntrusted)
			}
		}
	}
	if n == 0 {
		if rec.Previous != "" {
			return fmt.Errorf("first entry has a previous one: %w", format.ErrCorrupt)
		}
		return nil
	}
	if prev := l.records[n-1]; prev.Err == nil && prev.Digest != rec.Previous {
		return fmt.Errorf("it does not follow the entry before it: %w", damage.ErrUntrusted)
	}
	return nil
}

// Append writes an entry behind records, which are all that the log has;
// store.ErrExist where somebody else was faster.
func (l *Log) Append(ctx context.Context, records []Record, e Entry, writer envelope.SigningKey, now time.Time) error {
	_, err := l.append(ctx, records, e, writer, now)
	return err
}

// append gives the entry as Read will.
func (l *Log) append(ctx context.Context, records []Record, e Entry, writer envelope.SigningKey, now time.Time) (rec Record, err error) {
	e.Machine, e.N, e.Previous, e.Time = l.keys.ID, int64(len(records)), "", now
	if len(records) > 0 {
		e.Previous = records[len(records)-1].Digest
	}
	body, err := json.Marshal(e)
	if err != nil {
		return rec, fmt.Errorf("write machine log: %w", err)
	}
	signed, err := envelope.Sign(PayloadType, body, writer)
	if err != nil {
		return rec, fmt.Errorf("write machine log: %w", err)
	}
	frame, err := smallobject.Put(ctx, l.st, format.LogKey(l.keys.ID, e.N), format.KindLog, l.keys.Metadata, signed)
	if err != nil {
		return rec, err
	}
	return Record{Entry: e, Digest: trust.Digest(frame), Writer: writer.ID()}, nil
}

// DeleteAll takes recovery points off the list, in this order, and gives those
// that it took; one that is not listed is passed over. begin is called before
// each, listed or not, and says why it goes; where it fails, that is the end.
// It reads the log once, and again only where somebody else writes to it.
func (l *Log) DeleteAll(ctx context.Context, points []string, writer envelope.SigningKey, now func() time.Time, begin func(point string) (reason string, err error)) (deleted []string, err error) {
	records, err := l.Read(ctx)
	if err != nil {
		return nil, err
	}
	listed := ids(records)
	for _, p := range points {
		if err := ctx.Err(); err != nil {
			return deleted, err
		}
		reason, err := begin(p)
		if err != nil {
			return deleted, err
		}
		for listed[p] {
			rec, err := l.append(ctx, records, Entry{Kind: Delete, Point: p, Reason: reason}, writer, now())
			if err == nil {
				delete(listed, p)
				records, deleted = append(records, rec), append(deleted, p)
				break
			}
			if !errors.Is(err, store.ErrExist) {
				return deleted, err
			}
			again, err := l.Read(ctx)
			if err != nil {
				return deleted, err
			}
			// A store that shows no entry where it has one would keep us here.
			if len(again) <= len(records) {
				return deleted, fmt.Errorf("machine log entry %d: %w", len(records), store.ErrExist)
			}
			records, listed = again, ids(again)
		}
	}
	return deleted, nil
}

// ids are the recovery points that records list.
func ids(records []Record) map[string]bool {
	out := map[string]bool{}
	for _, rec := range Listed(records) {
		out[rec.Point] = true
	}
	return out
}

// Deleted gives the recovery points that records delete.
func Deleted(records []Record) map[string]bool {
	deleted := map[string]bool{}
	for i := range records {
		if r := &records[i]; r.Err == nil && r.Kind == Delete {
			deleted[r.Point] = true
		}
	}
	return deleted
}

// Listed gives the commit entries that no entry deletes, in the log's order.
func Listed(records []Record) []Record {
	deleted := Deleted(records)
	var out []Record
	for _, r := range records {
		if r.Err == nil && r.Kind == Commit && !deleted[r.Point] {
			out = append(out, r)
		}
	}
	return out
}

// LastBirth is the greatest birth of a commit among records, -1 if there is none.
func LastBirth(records []Record) int64 {
	last := int64(-1)
	for i := range records {
		if r := &records[i]; r.Err == nil && r.Kind == Commit {
			last = max(last, r.Birth())
		}
	}
	return last
}

// NextBirth is the birth of a writer that saw records.
func NextBirth(records []Record) int64 {
	return max(int64(len(records)), LastBirth(records)+1)
}
