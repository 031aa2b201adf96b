package copies

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/inside"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/trust"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// record is a machine's record: its keys in the clear. Who reads one wipes it.
type record struct {
	repository.Machine
	Metadata []byte `json:"metadata"`
	Content  []byte `json:"content"`
}

func (r record) wipe() {
	envelope.Wipe(r.Metadata)
	envelope.Wipe(r.Content)
}

func readRecord(ctx context.Context, r inside.Repository, mid string) (rec record, err error) {
	key := format.MachineKey(mid)
	_, err = twin.Get(ctx, r.Store, key, func(raw []byte) error {
		body, err := envelope.OpenFrame(raw, format.KindMachine, r.DEK, []byte(key))
		if err != nil {
			return err
		}
		defer envelope.Wipe(body)
		rec = record{}
		if err := json.Unmarshal(body, &rec); err != nil {
			return err
		}
		if rec.ID != mid {
			return fmt.Errorf("record of machine %s: %w", rec.ID, format.ErrCorrupt)
		}
		return nil
	})
	return rec, err
}

// write wraps the keys for a repository that lacks the record. Where the
// machine's log is there and the record is lost, they have to be the log's keys.
func (r record) write(ctx context.Context, to inside.Repository, trusted func() trust.Log) error {
	keys, err := machinekey.New(r.ID, bytes.Clone(r.Metadata), bytes.Clone(r.Content))
	if err != nil {
		return err
	}
	defer keys.Wipe()
	log, err := machinelog.New(to.Store, keys, trusted, slog.New(slog.DiscardHandler)).Read(ctx)
	if err != nil {
		return err
	}
	if len(log) > 0 && !slices.ContainsFunc(log, func(x machinelog.Record) bool { return x.Err == nil }) {
		return fmt.Errorf("the machine's log is there: %w", ErrOtherKeys)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	defer envelope.Wipe(body)
	key := format.MachineKey(r.ID)
	frame, err := envelope.SealFrame(format.KindMachine, to.DEK, []byte(key), body)
	if err != nil {
		return err
	}
	if err := twin.Put(ctx, to.Store, key, frame); err != nil && !errors.Is(err, store.ErrExist) {
		return err
	}
	return nil
}
