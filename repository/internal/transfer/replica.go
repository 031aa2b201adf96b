package transfer

import (
	"context"
	"fmt"

	"github.com/lockstep-backup/lockstep/repository/internal/damage"
)

// replicas brings an object under another name.
func (c *Copier) replicas(_ context.Context, key string, gone, fenced bool, _ Buffer) error {
	return &damage.Error{Object: key, Err: fmt.Errorf("gone %v, fenced %v", gone, fenced)}
}
