package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Latest stands for a machine's newest recovery point: NAME@latest.
const Latest = "latest"

// Resolve finds the recovery point that ref names: an id or a unique prefix of
// it, NAME@latest, or NAME@TIME, the newest at or before TIME (RFC 3339;
// without a fraction, all of that second).
// Newest is decided by the machine log's order, never by clocks; only where a
// machine's recovery points lie in several repositories, each with a log of its
// own, does the time they were written decide between these logs' newest.
// ErrNotFound, ErrAmbiguous, ErrBadRef.
func (c *Catalog) Resolve(ctx context.Context, ref string) (Point, error) {
	name, when, named := strings.Cut(ref, "@")
	if !named {
		return c.resolvePrefix(ctx, ref)
	}
	if name == "" || when == "" {
		return Point{}, fmt.Errorf("find recovery point %q: %w", ref, ErrBadRef)
	}
	var limit time.Time
	if when != Latest {
		t, err := time.Parse(time.RFC3339Nano, when)
		if err != nil {
			return Point{}, fmt.Errorf("find recovery point %q: %w", ref, ErrBadRef)
		}
		if limit = t; !strings.Contains(when, ".") {
			limit = t.Add(time.Second - 1) // all of that second: lists show no fractions
		}
	}
	m, err := c.Machines.ByName(ctx, name)
	if err != nil {
		return Point{}, fmt.Errorf("find recovery point %q: %w", ref, err)
	}
	points, err := c.Points.List(ctx, PointQuery{Machine: m.ID, Bare: true})
	if err != nil {
		return Point{}, fmt.Errorf("find recovery point %q: %w", ref, err)
	}
	newest, ok := Newest(points, limit)
	if !ok {
		return Point{}, fmt.Errorf("find recovery point %q: %w", ref, ErrNotFound)
	}
	return c.Points.Get(ctx, newest.ID)
}

// Newest returns the newest of one machine's recovery points, of those at or
// before limit where that is not zero. See Resolve for what newest means.
func Newest(points []Point, limit time.Time) (Point, bool) {
	heads := map[string]Point{} // by repository
	for _, p := range points {
		if !p.DeletedAt.IsZero() || !limit.IsZero() && p.Time.After(limit) {
			continue
		}
		if h, ok := heads[p.Repository]; !ok || p.Sequence > h.Sequence {
			heads[p.Repository] = p
		}
	}
	var newest Point
	found := false
	for _, h := range heads {
		later := h.Written.After(newest.Written) || h.Written.Equal(newest.Written) && h.ID > newest.ID
		if !found || later {
			newest, found = h, true
		}
	}
	return newest, found
}

func (c *Catalog) resolvePrefix(ctx context.Context, prefix string) (Point, error) {
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" {
		return Point{}, c.notAPoint(ctx, prefix, ErrBadRef)
	}
	p, err := c.Points.Get(ctx, prefix)
	switch {
	case err == nil && p.DeletedAt.IsZero():
		return p, nil
	case err == nil:
		return Point{}, fmt.Errorf("find recovery point %s: deleted at %s (%s): %w",
			prefix, p.DeletedAt.UTC().Format(time.RFC3339), p.DeletedReason, ErrNotFound)
	case !errors.Is(err, ErrNotFound):
		return Point{}, err
	}
	ids, err := c.Points.ByPrefix(ctx, prefix, 8)
	if err != nil {
		return Point{}, err
	}
	switch len(ids) {
	case 0:
		return Point{}, c.notAPoint(ctx, prefix, ErrNotFound)
	case 1:
		return c.Points.Get(ctx, ids[0])
	default:
		return Point{}, fmt.Errorf("find recovery point %q: %w: %s", prefix, ErrAmbiguous, list(ids))
	}
}

// notAPoint helps who gave a machine's name where a recovery point was asked for.
func (c *Catalog) notAPoint(ctx context.Context, ref string, reason error) error {
	if _, err := c.Machines.ByName(ctx, ref); err == nil {
		return fmt.Errorf("find recovery point %q: it is a machine; its newest is %s@%s: %w", ref, ref, Latest, reason)
	}
	return fmt.Errorf("find recovery point %q: %w", ref, reason)
}
