// Package smallobject reads and writes objects that are one frame, bound to
// their key in the store.
package smallobject

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/store"
)

// Get reads the body of the frame at key. Errors are those of package damage.
func Get(ctx context.Context, st store.Store, key string, kind uint16, k *[32]byte) ([]byte, error) {
	var body []byte
	_, err := Read(ctx, st, key, func(raw []byte) (err error) {
		body, err = envelope.OpenFrame(raw, kind, k, []byte(key))
		return err
	})
	return body, err
}

// Read reads the object at key whole, and once more where check refuses it: a
// bit may have flipped on the way, or in a cache. Errors are those of package damage.
func Read(ctx context.Context, st store.Store, key string, check func(raw []byte) error) ([]byte, error) {
	for again := false; ; again = true {
		raw, err := store.GetAll(ctx, st, key, store.MaxSmallObject)
		if err != nil {
			return nil, damage.FromStore(key, err)
		}
		if err = check(raw); err == nil {
			return raw, nil
		}
		if again {
			return nil, &damage.Error{Object: key, Err: err}
		}
		store.Forget(st, key)
	}
}

// Put seals body and creates the object; it returns the frame. store.ErrExist
// says that another object has the key.
func Put(ctx context.Context, st store.Store, key string, kind uint16, k *[32]byte, body []byte) ([]byte, error) {
	frame, err := envelope.SealFrame(kind, k, []byte(key), body)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", key, err)
	}
	err = st.Put(ctx, key, frame)
	if errors.Is(err, store.ErrExist) {
		// A store that tries again after a lost answer meets its own object. Sealing
		// draws a salt, so equal bytes are ours.
		if old, rerr := store.GetAll(ctx, st, key, int64(len(frame))); rerr == nil && bytes.Equal(old, frame) {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", key, err)
	}
	return frame, nil
}
