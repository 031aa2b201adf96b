package catalog

import (
	"context"
	"time"
)

// Machine is a protected machine. Of the machines that are not removed, no two
// have the same name.
type Machine struct {
	ID        string
	Name      string
	Created   time.Time
	Disks     []MachineDisk
	RemovedAt time.Time // zero = it is protected
}

// MachineDisk says where a protected disk is, as the user wrote it.
type MachineDisk struct {
	ID     string `json:"id"`
	Source string `json:"source"`
	Header string `json:"header,omitempty"` // detached LUKS header
	// Declared is what the user declared of volumes that cannot be seen, by the
	// volume's id ("disk" = the whole disk): diskcrypt.Volume.Declared.
	Declared map[string]map[string]string `json:"declared,omitempty"`
}

// Machines are the protected machines.
type Machines interface {
	// Put adds the machine or replaces the one with its id; ErrExists where
	// another machine has its name.
	Put(ctx context.Context, m Machine) error
	// Get finds a machine by id, removed or not; ErrNotFound.
	Get(ctx context.Context, id string) (Machine, error)
	// ByName finds the machine of that name that is not removed, else the one
	// that was removed last; ErrNotFound.
	ByName(ctx context.Context, name string) (Machine, error)
	// List returns all by name, the removed ones only if asked.
	List(ctx context.Context, removed bool) ([]Machine, error)
	// Remove says that the machine is no longer protected. Its recovery points stay. ErrNotFound.
	Remove(ctx context.Context, id string, at time.Time) error
}

// Repository is a registered repository.
type Repository struct {
	ID         string
	URL        string
	TrustRoot  string    // pin of its trust log, "sha256:…"
	LastReadAt time.Time // when it was last read as a whole; zero = never
}

// Repositories are the registered repositories.
type Repositories interface {
	// Put adds the repository or replaces the one with its id.
	Put(ctx context.Context, r Repository) error
	// Get is ErrNotFound where the id is not registered.
	Get(ctx context.Context, id string) (Repository, error)
	List(ctx context.Context) ([]Repository, error)
	// MarkRead sets LastReadAt. ErrNotFound.
	MarkRead(ctx context.Context, id string, at time.Time) error
}
