package repositories

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/policy"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/store"
)

func wireLock(p frame.Place, l repository.LockPolicy) *frame.Out[api.RepositoryLock] {
	v := api.RepositoryLock{Repository: p.Name}
	if l.For > 0 {
		v.For, v.Mode = policy.Duration(l.For).String(), string(l.Mode)
	}
	return &frame.Out[api.RepositoryLock]{Body: v}
}

func (s routes) showLock(_ context.Context, req *repositoryPath) (*frame.Out[api.RepositoryLock], error) {
	place, err := s.named(req.Name)
	if err != nil {
		return nil, err
	}
	l, err := s.LockOf(place.Name)
	return wireLock(place, l), err
}

type lockRequest struct {
	Name string `path:"name" doc:"name, id or URL of the repository"`
	Body api.RepositoryLock
}

// leastLock is the shortest period that makes sense: what is shorter ends
// before anybody looks.
const leastLock = 24 * time.Hour

func (s routes) setLock(ctx context.Context, req *lockRequest) (*frame.Out[api.RepositoryLock], error) {
	r := req.Body
	e := audit.Event{Action: "repository.lock", Object: frame.Clip(req.Name), Detail: map[string]string{"for": frame.Clip(r.For), "mode": frame.Clip(r.Mode)}}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.RepositoryLock], error) {
		place, err := s.named(req.Name)
		if err != nil {
			return nil, err
		}
		var l repository.LockPolicy
		if r.For != "" {
			d, err := policy.ParseDuration(r.For)
			if err != nil || time.Duration(d) < leastLock {
				if err == nil {
					err = errors.New("it is shorter than a day")
				}
				p := frame.NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, fmt.Sprintf("lock repository: --for %s: %v", frame.Clip(r.For), err))
				p.Hint = "such as 30d: at least a day"
				return nil, p
			}
			l = repository.LockPolicy{For: time.Duration(d), Mode: store.LockMode(r.Mode)}
			if l.Mode == "" {
				l.Mode = store.Governance
			}
		}
		lock, err := s.Locks.Acquire("repositories", "repository lock")
		if err != nil {
			return nil, err
		}
		defer lock.Release()
		err = s.SetLock(ctx, place.Name, l)
		var refused *api.Error
		if errors.As(err, &refused) { // what it says is for who asked
			return nil, (*frame.Problem)(refused)
		}
		if err != nil {
			return nil, fmt.Errorf("lock repository %s: %w", place.Name, err)
		}
		return wireLock(place, l), nil
	})
}
