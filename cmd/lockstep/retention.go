package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
	"github.com/lockstep-backup/lockstep/policy"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

// lockConfig is for how long a repository's store locks what is written.
type lockConfig struct {
	For  policy.Duration `json:"for"`
	Mode store.LockMode  `json:"mode"`
}

func (c repositoryConfig) lockPolicy() repository.LockPolicy {
	if c.Lock == nil {
		return repository.LockPolicy{}
	}
	return repository.LockPolicy{For: time.Duration(c.Lock.For), Mode: c.Lock.Mode}
}

func (e *engine) named(name string) (repositoryConfig, error) {
	for _, c := range e.repositoryConfigs() {
		if c.name() == name {
			return c, nil
		}
	}
	return repositoryConfig{}, fmt.Errorf("repository %s: %w", name, catalog.ErrNotFound)
}

func (e *engine) lockOf(name string) (repository.LockPolicy, error) {
	c, err := e.named(name)
	return c.lockPolicy(), err
}

// setLock changes for how long a repository's store locks what is written. Who
// has the repository open goes on as before; who opens it next does not.
func (e *engine) setLock(ctx context.Context, name string, l repository.LockPolicy) error {
	c, err := e.named(name)
	if err != nil {
		return err
	}
	if err := l.Check(); err != nil {
		return err
	}
	var want *lockConfig
	if l.For > 0 {
		if err := e.canLock(ctx, c); err != nil {
			return err
		}
		want = &lockConfig{For: policy.Duration(l.For), Mode: l.Mode}
	}
	err = places{e}.change(func(now *config) error {
		for _, o := range now.all() {
			if o.ID == c.ID {
				o.Lock = want
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	e.repos.retire(c.ID)
	return nil
}

// all are the repositories, to be changed.
func (c *config) all() []*repositoryConfig {
	out := []*repositoryConfig{&c.Repository}
	for i := range c.Others {
		out = append(out, &c.Others[i])
	}
	return out
}

// canLock refuses a store that does not lock objects.
func (e *engine) canLock(ctx context.Context, c repositoryConfig) error {
	st, err := e.openStore(ctx, c)
	if err != nil {
		return err
	}
	defer st.Close()
	locks, err := stores.Locks(ctx, st)
	if err != nil {
		return err
	}
	if !locks {
		return &api.Error{
			Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused, Detail: fmt.Sprintf("lock repository %s: %s: %v", c.name(), st.Location(), store.ErrNoLock),
			Hint: "only a bucket that has object lock can hold what nobody can delete: docs/stores.md",
		}
	}
	return nil
}

// retire lets an open repository be: jobs may work with it. The next one who
// asks opens it anew.
func (r *repositories) retire(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.open[id]
	if o == nil {
		return
	}
	for n := 0; ; n++ { // it is closed with the others
		if key := fmt.Sprintf("%s, retired %d", id, n); r.open[key] == nil {
			r.open[key] = o
			break
		}
	}
	delete(r.open, id)
}
