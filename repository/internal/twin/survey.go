package twin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/store"
)

// Survey is what one listing of the second copies showed. With it a repository
// is opened: it names what is to be read, and who reads the first copies
// through it learns which copies are missing. It is a hint, and grows old: what
// was written later is not in it. Not safe for concurrent use.
type Survey struct {
	st      store.Store
	seconds map[string]bool // keys without Prefix
	torn    map[string]bool // of which Get found a copy missing
}

const (
	// maxSurveyMachines bounds what a repository of many machines costs who opens
	// it: with more, their records are passed over.
	maxSurveyMachines = 500
	maxSurvey         = 1 << 20
)

var errManyMachines = errors.New("many machines")

// Look lists the second copies.
func Look(ctx context.Context, st store.Store) (*Survey, error) {
	s := &Survey{st: st, seconds: map[string]bool{}, torn: map[string]bool{}}
	machines := 0
	add := func(i store.Info) error {
		key := strings.TrimPrefix(i.Key, Prefix)
		if strings.HasPrefix(key, format.MachinePrefix) {
			if machines++; machines > maxSurveyMachines {
				return errManyMachines
			}
		}
		if len(s.seconds) >= maxSurvey {
			return fmt.Errorf("more than %d objects: %w", maxSurvey, damage.ErrDamaged)
		}
		s.seconds[key] = true
		return nil
	}
	err := st.List(ctx, Prefix, add)
	if errors.Is(err, errManyMachines) { // behind them, in the order of names, is the trust log
		err = st.List(ctx, Prefix+format.TrustPrefix, add)
	}
	if err != nil {
		return nil, fmt.Errorf("list second copies: %w", err)
	}
	return s, nil
}

// Has says whether the second copy of an object was listed.
func (s *Survey) Has(key string) bool { return s.seconds[key] }

// Keys are the keys below prefix whose second copies were listed, sorted.
func (s *Survey) Keys(prefix string) []string {
	var keys []string
	for key := range s.seconds {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Get is the package's Get, and remembers where a copy is missing.
func (s *Survey) Get(ctx context.Context, key string, check func([]byte) error) ([]byte, error) {
	raw, first, err := getPair(ctx, s.st, key, check)
	if err == nil && (errors.Is(first, damage.ErrNotFound) || !s.seconds[key]) {
		s.torn[key] = true
	}
	return raw, err
}

// Torn says whether Get found that a copy of the object is missing.
func (s *Survey) Torn(key string) bool { return s.torn[key] }

// Heal writes the copies again that Get found missing, from what check accepts.
// It calls healed, which may be nil, with the key of each that it wrote.
func (s *Survey) Heal(ctx context.Context, check func([]byte) error, healed func(key string)) error {
	for key := range s.torn {
		raw, err := Get(ctx, s.st, key, check)
		if err != nil {
			continue // whoever needs it reports it
		}
		if err := Heal(ctx, s.st, key, raw, healed); err != nil {
			return err
		}
		delete(s.torn, key)
		s.seconds[key] = true
	}
	return nil
}
