// Package inside is what package repository shows of itself to the packages
// below repository/, and to nobody else.
package inside

import (
	"context"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/retainlock"
	"github.com/lockstep-backup/lockstep/repository/internal/trust"
	"github.com/lockstep-backup/lockstep/store"
)

// Repository is an open repository from within.
type Repository struct {
	Store  store.Store
	Sealed bool
	Writer *envelope.SigningKey // nil: read only
	// ReadOnly is the error of an operation that needs Writer.
	ReadOnly func(operation string) error
	Now      func() time.Time
	DEK      *[32]byte
	Lock     *retainlock.Store // Store, where what is written is locked; else nil
	// Machine gives a machine's keys and log, which the repository owns.
	Machine func(ctx context.Context, mid string) (*machinekey.Keys, *machinelog.Log, error)
	// ChangeTrust has change make the trust log that counts from then on.
	ChangeTrust func(change func(trust.Log) (trust.Log, error)) error
	// Forget drops what is remembered of a machine's objects.
	Forget func(mid string)
}
