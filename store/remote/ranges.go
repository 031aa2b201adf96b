package remote

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"
)

// ReadParallel reads len(p) bytes at off in pieces, at most parallel of them at
// the same time, where p is longer than a piece and a half. read has
// store.Store.ReadRange's contract, and so has ReadParallel: a short read is of
// the bytes there are up to the end, with io.EOF.
func ReadParallel(ctx context.Context, off int64, p []byte, piece, parallel int, read func(ctx context.Context, off int64, p []byte) (int, error)) (int, error) {
	if len(p) <= piece+piece/2 || parallel <= 1 {
		return read(ctx, off, p)
	}
	type result struct {
		n   int
		eof bool
	}
	results := make([]result, (len(p)+piece-1)/piece)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range results {
		group.Go(func() error {
			n, err := read(gctx, off+int64(i*piece), p[i*piece:min((i+1)*piece, len(p))])
			results[i] = result{n, errors.Is(err, io.EOF)}
			if err != nil && !results[i].eof {
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	total := 0
	for i, r := range results {
		total += r.n
		if whole := min((i+1)*piece, len(p)) - i*piece; r.n < whole {
			return total, io.EOF // the pieces behind it are empty
		} else if r.eof && i == len(results)-1 {
			return total, io.EOF
		}
	}
	return total, nil
}
