package drill

import (
	"context"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/repository"
)

// Store puts a signed report beside its recovery point.
func Store(ctx context.Context, repo *repository.Repository, report custody.Drill, signed []byte) error {
	if _, err := repo.PutSidecar(ctx, report.Machine, report.Point, repository.SidecarDrill, signed); err != nil {
		return fmt.Errorf("store drill report: %w", err)
	}
	return nil
}

// Reports are the reports beside a recovery point that are signed by a
// custodian and about it, oldest first; problems name those that do not count.
func Reports(ctx context.Context, repo *repository.Repository, mf *repository.Manifest) (reports []custody.Drill, problems []string, err error) {
	want, err := prove.Expected(mf)
	if err != nil {
		return nil, nil, err
	}
	sidecars, err := repo.Sidecars(ctx, mf.Machine, mf.Point)
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	trust := repo.Trust()
	for _, s := range sidecars {
		if s.Kind != repository.SidecarDrill {
			continue
		}
		d, err := custody.VerifyDrill(s.Raw, trust, want)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s does not count: %v", s.Key, err))
			continue
		}
		reports = append(reports, d)
	}
	slices.SortFunc(reports, func(a, b custody.Drill) int { return a.Started.Compare(b.Started) })
	return reports, problems, nil
}
