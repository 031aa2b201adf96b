// Package twin keeps the small objects without which nothing can be read (the
// configuration, wrapped keys, the trust log) twice, under two prefixes, so
// that one rotten sector does not cost a repository.
package twin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/store"
)

// Prefix of the second copies.
const Prefix = "copies/"

const maxSize = 1 << 20

// Put writes both copies. The first is the object; between the two a crash
// leaves it without its second copy, which Heal brings back.
func Put(ctx context.Context, st store.Store, key string, data []byte) error {
	if err := st.Put(ctx, key, data); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return putNew(ctx, st, Prefix+key, data)
}

// Heal writes the copies of an object that are missing. One that is there,
// whatever it holds, stays: objects are never replaced. It calls healed, which
// may be nil, with the key of each that it wrote.
func Heal(ctx context.Context, st store.Store, key string, data []byte, healed func(key string)) error {
	for _, at := range []string{key, Prefix + key} {
		if _, err := st.Stat(ctx, at); err == nil {
			continue
		}
		if err := putNew(ctx, st, at, data); err != nil {
			return err
		}
		if healed != nil {
			healed(at)
		}
	}
	return nil
}

func putNew(ctx context.Context, st store.Store, at string, data []byte) error {
	if err := st.Put(ctx, at, data); err != nil && !errors.Is(err, store.ErrExist) {
		return fmt.Errorf("write %s: %w", at, err)
	}
	return nil
}

// HealAll writes the missing ones of the copies of all objects below prefix,
// from what check accepts.
func HealAll(ctx context.Context, st store.Store, prefix string, most int, check func([]byte) error, healed func(key string)) error {
	copies := map[string]int{}
	for _, p := range []string{"", Prefix} {
		err := st.List(ctx, p+prefix, func(i store.Info) error {
			if len(copies) > most {
				return fmt.Errorf("list %s: more than %d objects: %w", prefix, most, damage.ErrDamaged)
			}
			copies[strings.TrimPrefix(i.Key, Prefix)]++
			return nil
		})
		if err != nil {
			return err
		}
	}
	for key, n := range copies {
		if n == 2 {
			continue
		}
		raw, err := Get(ctx, st, key, check)
		if err != nil {
			continue // whoever needs it reports it
		}
		if err := Heal(ctx, st, key, raw, healed); err != nil {
			return err
		}
	}
	return nil
}

// Get reads the object; where check refuses the first copy, or it is gone, the
// second. damage.ErrNotFound: there is neither.
func Get(ctx context.Context, st store.Store, key string, check func([]byte) error) ([]byte, error) {
	raw, _, err := getPair(ctx, st, key, check)
	return raw, err
}

// getPair is Get; first says what was wrong with the first copy.
func getPair(ctx context.Context, st store.Store, key string, check func([]byte) error) (raw []byte, first, err error) {
	raw, first = get(ctx, st, key, check)
	if first == nil || ctx.Err() != nil {
		return raw, first, first
	}
	second, err := get(ctx, st, Prefix+key, check)
	if err == nil {
		return second, first, nil
	}
	if errors.Is(first, damage.ErrNotFound) && !errors.Is(err, damage.ErrNotFound) {
		return nil, first, err
	}
	return nil, first, first
}

func get(ctx context.Context, st store.Store, at string, check func([]byte) error) ([]byte, error) {
	raw, err := store.GetAll(ctx, st, at, maxSize)
	if err != nil {
		return nil, damage.FromStore(at, err)
	}
	if err := check(raw); err != nil {
		return nil, &damage.Error{Object: at, Err: err}
	}
	return raw, nil
}

// List calls fn once for every key below prefix of which there is a copy.
func List(ctx context.Context, st store.Store, prefix string, most int, fn func(key string) error) error {
	seen := map[string]bool{}
	for _, p := range []string{prefix, Prefix + prefix} {
		err := st.List(ctx, p, func(i store.Info) error {
			key := strings.TrimPrefix(i.Key, Prefix)
			if seen[key] {
				return nil
			}
			if len(seen) >= most {
				return fmt.Errorf("list %s: more than %d objects: %w", prefix, most, damage.ErrDamaged)
			}
			seen[key] = true
			return fn(key)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
