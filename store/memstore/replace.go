package memstore

import (
	"fmt"

	"github.com/lockstep-backup/lockstep/store"
)

// Replace lets fn change a stored object in place, as a store that lies would:
// the contract of store.Store has no such operation.
func (s *Store) Replace(key string, fn func([]byte)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.objects[key]
	if !ok {
		return fmt.Errorf("replace %s: %w", key, store.ErrNotExist)
	}
	fn(data)
	return nil
}
