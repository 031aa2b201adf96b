package reclaim

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/store"
)

// Stages of a ledger.
const (
	accounted = 1
	swept     = 2
)

// ledgers lists a machine's ledgers, the one that counts last.
func (s *Source) ledgers(ctx context.Context) (all []store.Info, err error) {
	prefix := format.LedgerPrefix(s.Keys.ID)
	err = s.Store.List(ctx, prefix, func(i store.Info) error {
		n, stage, ok := strings.Cut(i.Key[len(prefix):], "-")
		_, nerr := format.ParseNumber(n)
		if _, serr := strconv.ParseUint(stage, 10, 4); ok && nerr == nil && serr == nil && len(stage) == 1 {
			all = append(all, i)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list ledgers: %w", err)
	}
	return all, nil
}

// readLedger reads the one that counts; ok is false where there is none that can be read.
func (s *Source) readLedger(ctx context.Context) (l format.Ledger, ok bool, err error) {
	all, err := s.ledgers(ctx)
	if err != nil || len(all) == 0 {
		return l, false, err
	}
	key := all[len(all)-1].Key
	body, err := smallobject.Get(ctx, s.Store, key, format.KindLedger, s.Keys.Map)
	if err == nil {
		l, err = format.ParseLedger(body)
	}
	if err != nil {
		if unreadable(err) || errors.Is(err, format.ErrCorrupt) || errors.Is(err, format.ErrVersion) {
			s.Logger.Warn("the ledger cannot be read, everything is counted again", "object", key, "error", err)
			return l, false, nil
		}
		return l, false, err
	}
	return l, true, nil
}

func (s *Source) writeLedger(ctx context.Context, fence int64, stage int, l format.Ledger) error {
	key := format.LedgerKey(s.Keys.ID, fence, stage)
	_, err := smallobject.Put(ctx, s.Store, key, format.KindLedger, s.Keys.Map, l.Encode())
	return err
}

// dropLedgers deletes the ledgers before the given one.
func (s *Source) dropLedgers(ctx context.Context, fence int64) error {
	all, err := s.ledgers(ctx)
	if err != nil {
		return err
	}
	keep := format.LedgerKey(s.Keys.ID, fence, swept)
	for _, i := range all {
		if i.Key >= keep {
			continue
		}
		if err := s.Store.Delete(ctx, i.Key); err != nil && !errors.Is(err, store.ErrNotExist) && !errors.Is(err, store.ErrLocked) {
			return fmt.Errorf("delete %s: %w", i.Key, err)
		}
	}
	return nil
}
