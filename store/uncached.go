package store

import "context"

type uncachedKey struct{}

// Uncached marks a context whose reads must be answered by the store itself,
// not by a cache before it: what a check of the store needs.
func Uncached(ctx context.Context) context.Context {
	return context.WithValue(ctx, uncachedKey{}, true)
}

// Forget has a store that keeps what it read drop what it has of an object,
// where there is such a store, also behind others (Unwrap): for a reader who
// cannot authenticate what he got.
func Forget(s any, key string) {
	for {
		if f, ok := s.(interface{ Forget(key string) }); ok {
			f.Forget(key)
			return
		}
		u, ok := s.(interface{ Unwrap() Store })
		if !ok {
			return
		}
		s = u.Unwrap()
	}
}

// IsUncached tells whether ctx was marked by Uncached.
func IsUncached(ctx context.Context) bool {
	marked, _ := ctx.Value(uncachedKey{}).(bool)
	return marked
}
