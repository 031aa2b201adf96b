package store

import "context"

type uncachedKey struct{}

// Uncached marks a context whose reads must be answered by the store itself,
// not by a cache before it: what a check of the store needs.
func Uncached(ctx context.Context) context.Context {
	return context.WithValue(ctx, uncachedKey{}, true)
}

// IsUncached tells whether ctx was marked by Uncached.
func IsUncached(ctx context.Context) bool {
	marked, _ := ctx.Value(uncachedKey{}).(bool)
	return marked
}
