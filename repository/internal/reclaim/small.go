package reclaim

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/store"
)

// certificate is the kind of sidecar that outlives its recovery point.
const certificate = "certificate"

// listSmall finds manifests, sidecars and header copies that go.
func (r *run) listSmall(ctx context.Context, deleted map[string]bool) error {
	mid := r.Keys.ID
	committed := map[string]bool{}
	for i := range r.records {
		if r.records[i].Manifest != "" {
			committed[r.records[i].Point] = true
		}
	}
	each := func(prefix string, fn func(i store.Info, rest string) (bool, error)) error {
		err := r.Store.List(ctx, prefix, func(i store.Info) error {
			goes, err := fn(i, i.Key[len(prefix):])
			if goes {
				r.small = append(r.small, i)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		return nil
	}
	err := each(format.ManifestKey(mid, ""), func(_ store.Info, pid string) (bool, error) {
		switch {
		case committed[pid]:
			return deleted[pid], nil
		case !format.ValidID(pid):
			return false, nil
		}
		birth, err := r.Uncommitted(ctx, pid)
		if err != nil {
			return false, readable(err)
		}
		return birth >= 0 && birth <= r.limit, nil
	})
	if err != nil {
		return err
	}
	err = each("side/"+mid+"/", func(_ store.Info, rest string) (bool, error) {
		pid, name, _ := strings.Cut(rest, "/")
		return deleted[pid] && !strings.HasPrefix(name, certificate+"-"), nil
	})
	if err != nil {
		return err
	}
	for _, prefix := range []string{format.HeaderPrefixA, format.HeaderPrefixB} {
		if err := each(prefix+mid+"/", func(i store.Info, hid string) (bool, error) { return r.deadHeader(ctx, i.Key, hid) }); err != nil {
			return err
		}
	}
	return nil
}

// deadHeader says whether no listed recovery point needs a header copy.
func (r *run) deadHeader(ctx context.Context, key, hid string) (bool, error) {
	if !format.ValidID(hid) {
		return false, nil
	}
	birth, err := strconv.ParseInt(hid[:8], 16, 64)
	if err != nil || birth > r.limit {
		return false, nil
	}
	for _, n := range r.cover.of(birth) {
		c, err := r.content(ctx, n)
		if err != nil {
			return false, readable(err)
		}
		for _, h := range c.Headers {
			if h == hid {
				return false, nil
			}
		}
	}
	// Ids of early versions have no birth in them, and only look like one.
	body, err := smallobject.Get(ctx, r.Store, key, format.KindHeader, r.Keys.Header)
	if err != nil {
		return false, readable(err)
	}
	g := r.Keys.Digester()
	defer r.Keys.Release(g)
	d := g.Keyed([]byte("header"), body)
	return hex.EncodeToString(d[:16]) != hid, nil
}
