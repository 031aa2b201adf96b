package points

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/checks"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

func (s routes) getStatus(ctx context.Context, req *frame.OfMachine) (*frame.Out[api.Status], error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	machines, err := s.Machines(ctx, c, req.Machine)
	if err != nil {
		return nil, err
	}
	r := &frame.Out[api.Status]{Body: api.Status{Machines: []api.MachineStatus{}}}
	for _, m := range machines {
		st, shown, err := s.machineStatus(ctx, c, m)
		if err != nil {
			return nil, err
		}
		if shown {
			r.Body.Machines = append(r.Body.Machines, st)
		}
	}
	of := ""
	if req.Machine != "" && len(machines) > 0 {
		of = machines[0].ID
	}
	if r.Body.Damaged, r.Body.Warnings, err = s.Damaged(ctx, c, of); err != nil {
		return nil, err
	}
	if req.Machine == "" {
		overdue, err := checks.Overdue(ctx, c, s.Repositories.List(), s.Now())
		if err != nil {
			return nil, err
		}
		r.Body.Warnings = append(r.Body.Warnings, overdue...)
	}
	slices.SortStableFunc(r.Body.Machines, func(a, b api.MachineStatus) int { return worseFirst(a.State, b.State) })
	return r, nil
}

// worseFirst orders states as custody does; a machine without a recovery point
// comes last.
func worseFirst(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == "":
		return 1
	case b == "":
		return -1
	case string(custody.WorstState(custody.State(a), custody.State(b))) == a:
		return -1
	default:
		return 1
	}
}

// machineStatus is the picture of one machine. A removed machine is shown
// while it has recovery points.
func (s routes) machineStatus(ctx context.Context, c *catalog.Catalog, m catalog.Machine) (st api.MachineStatus, shown bool, err error) {
	st = api.MachineStatus{Machine: m.Name, Secrets: []string{}, States: []string{}, Points: []api.PointSummary{}}
	all, err := c.Points.List(ctx, catalog.PointQuery{Machine: m.ID})
	if err != nil {
		return st, false, err
	}
	if len(all) == 0 {
		return st, m.RemovedAt.IsZero(), nil
	}
	view, err := prove.Load(ctx, s.Custody(ctx, c), m.ID)
	if err != nil {
		return st, false, err
	}
	st = show.Status(m, all, view)
	only, err := s.OnlyIn(ctx, c, m.ID)
	if err != nil {
		return st, false, err
	}
	counts := map[string]int{}
	for i, p := range st.Points {
		st.Points[i].OnlyIn = only[p.ID]
		if in := strings.Join(only[p.ID], ", "); in != "" {
			counts[in]++
		}
	}
	for _, in := range slices.Sorted(maps.Keys(counts)) {
		st.Notes = append(st.Notes, fmt.Sprintf("recovery points that backups' repository has not any more: %d in %s", counts[in], in))
	}
	if newest, ok := catalog.Newest(all, time.Time{}); ok {
		behind, err := s.Behind(ctx, c, m.ID, newest.ID)
		if err != nil {
			return st, false, err
		}
		for _, name := range behind {
			st.Notes = append(st.Notes, fmt.Sprintf("repository %s does not have the newest recovery point yet: 'lockstep repository copy %s --to %s'", name, m.Name, name))
		}
	}
	return st, true, nil
}
