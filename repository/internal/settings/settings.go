// Package settings is the configuration of a repository, the first object that a
// reader reads. It says nothing of where it is stored. Its invariant: what needs
// a feature that is not known is refused by name.
package settings

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
)

// Sealing of extents.
const (
	AESGCM = "aes-256-gcm"
	None   = "none"
)

// Config is the body of the object "config".
type Config struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Sealing string    `json:"sealing"`
	Must    []string  `json:"must"`
	May     []string  `json:"may"`
}

// knownFeatures are the must-understand features this version reads.
var knownFeatures = map[string]bool{}

// Parse reads the object as it is stored; damage.ErrFormat where it needs what
// this version lacks.
func Parse(raw []byte) (c Config, err error) {
	body, err := envelope.OpenFrame(raw, format.KindConfig, nil, nil)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return c, err
	}
	if c.Format != 1 {
		return c, fmt.Errorf("%w: version %d, this program reads version 1", damage.ErrFormat, c.Format)
	}
	for _, f := range c.Must {
		if !knownFeatures[f] {
			return c, fmt.Errorf("%w: it needs the feature %q, which this program lacks", damage.ErrFormat, f)
		}
	}
	if c.Sealing != AESGCM && c.Sealing != None {
		return c, fmt.Errorf("%w: sealing %q", damage.ErrFormat, c.Sealing)
	}
	if !format.ValidID(c.ID) {
		return c, format.ErrCorrupt
	}
	return c, nil
}
