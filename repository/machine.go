package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/extents"
	"github.com/lockstep-backup/lockstep/repository/internal/headercopy"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/replica"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// machine is a machine's keys and what is remembered of its objects.
type machine struct {
	Machine
	*machinekey.Keys
	view     *replica.View // through which segments and map objects are read
	segments *segment.Cache
	maps     *blockmap.Cache
	log      *machinelog.Log
	buffers  sync.Pool // *readBuffers, of all readers of its disks
}

// newReader makes a reader of stored extents, for one goroutine.
func newReader(m *machine) *extents.Reader { return extents.NewReader(m.Keys, m.segments, m.view) }

type machineRecord struct {
	Machine
	Metadata []byte `json:"metadata"`
	Content  []byte `json:"content"`
}

func (r *Repository) newMachine(rec machineRecord) (*machine, error) {
	keys, err := machinekey.New(rec.ID, rec.Metadata, rec.Content)
	if err != nil {
		return nil, err
	}
	view := replica.New(r.st, keys)
	return &machine{
		Machine: rec.Machine, Keys: keys, view: view,
		segments: segment.NewCache(keys, view, r.cfg.Sealing == SealingAESGCM), maps: blockmap.NewCache(keys, view),
		log: machinelog.New(r.st, keys, r.Trust, r.log),
	}, nil
}

// CreateMachine makes a machine with keys of its own; id "" draws one.
func (r *Repository) CreateMachine(ctx context.Context, id, name string) (Machine, error) {
	if id == "" {
		id = newID()
	}
	if !format.ValidID(id) {
		return Machine{}, fmt.Errorf("create machine: id %q is not 32 hex digits", id)
	}
	// New keys for a machine whose record got lost would bury what it has.
	if _, err := r.st.Stat(ctx, format.LogKey(id, 0)); err == nil {
		return Machine{}, fmt.Errorf("create machine %s: %w", name,
			&DamageError{Object: format.MachineKey(id), Machine: id, Err: errors.New("it is missing, the machine's log is there")})
	} else if !errors.Is(err, store.ErrNotExist) {
		return Machine{}, fmt.Errorf("create machine %s: %w", name, err)
	}
	meta, err := envelope.NewKey()
	if err != nil {
		return Machine{}, fmt.Errorf("create machine: %w", err)
	}
	content, err := envelope.NewKey()
	if err != nil {
		return Machine{}, fmt.Errorf("create machine: %w", err)
	}
	rec := machineRecord{
		Machine:  Machine{ID: id, Name: name, Created: r.now().UTC()},
		Metadata: meta.Expose(), Content: content.Expose(),
	}
	body, err := json.Marshal(rec)
	if err != nil {
		return Machine{}, fmt.Errorf("create machine: %w", err)
	}
	defer envelope.Wipe(body)
	defer meta.Wipe()
	defer content.Wipe()
	key := format.MachineKey(id)
	frame, err := envelope.SealFrame(format.KindMachine, r.dekKey(), []byte(key), body)
	if err != nil {
		return Machine{}, fmt.Errorf("create machine: %w", err)
	}
	if err := twin.Put(ctx, r.st, key, frame); err != nil {
		return Machine{}, fmt.Errorf("create machine %s: %w", name, err)
	}
	return rec.Machine, nil
}

func (r *Repository) dekKey() *[32]byte { return (*[32]byte)(r.dek.Expose()) }

const maxMachines = 1 << 20

// Machines lists the machines of the repository, by name. Damaged records come
// back as an error beside the good ones.
func (r *Repository) Machines(ctx context.Context) ([]Machine, error) {
	var ms []Machine
	var bad []error
	err := twin.List(ctx, r.st, format.MachinePrefix, maxMachines, func(key string) error {
		mid, ok := strings.CutSuffix(strings.TrimPrefix(key, format.MachinePrefix), "/key")
		if !ok || !format.ValidID(mid) {
			return nil
		}
		m, err := r.machine(ctx, mid)
		if err != nil {
			bad = append(bad, err)
			return nil
		}
		ms = append(ms, m.Machine)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	sort.Slice(ms, func(i, j int) bool { return ms[i].Name < ms[j].Name })
	return ms, errors.Join(bad...)
}

func (r *Repository) machine(ctx context.Context, mid string) (*machine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.machines[mid]; m != nil {
		return m, nil
	}
	if !format.ValidID(mid) {
		return nil, fmt.Errorf("machine %q: %w", mid, ErrNotFound)
	}
	key := format.MachineKey(mid)
	var m *machine
	raw, err := r.twins.Get(ctx, key, func(raw []byte) (err error) {
		m, err = r.parseMachine(raw, key, mid)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.writer != nil && r.twins.Torn(key) {
		if err := twin.Heal(ctx, r.st, key, raw, r.noteHealed); err != nil {
			r.log.Warn("machine record has no second copy", "machine", mid, "error", err)
		}
	}
	r.machines[mid] = m
	return m, nil
}

func (r *Repository) parseMachine(raw []byte, key, mid string) (*machine, error) {
	body, err := envelope.OpenFrame(raw, format.KindMachine, r.dekKey(), []byte(key))
	if err != nil {
		return nil, err
	}
	defer envelope.Wipe(body)
	var rec machineRecord
	if err := json.Unmarshal(body, &rec); err != nil {
		return nil, err
	}
	if rec.ID != mid {
		return nil, fmt.Errorf("record of machine %s: %w", rec.ID, format.ErrCorrupt)
	}
	return r.newMachine(rec)
}

// Header is a stored copy of a volume's encryption header.
type Header = headercopy.Header

// Header reads a header copy, the second where the first is damaged or gone.
func (r *Repository) Header(ctx context.Context, mid, hid string) (*Header, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	if !format.ValidID(hid) {
		return nil, fmt.Errorf("read header copy %q: %w", hid, ErrNotFound)
	}
	var errs []error
	for _, key := range format.HeaderKeys(mid, hid) {
		body, err := smallobject.Get(ctx, r.st, key, format.KindHeader, m.Header)
		if err == nil {
			var h *Header
			if h, err = headercopy.Parse(body); err == nil {
				return h, nil
			}
			err = &DamageError{Object: key, Machine: mid, Err: err}
		}
		r.log.Warn("header copy cannot be read", "object", key, "error", err)
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// PutSidecar stores a signed statement about a recovery point, or, with
// MachineSidecars, about the machine.
func (r *Repository) PutSidecar(ctx context.Context, mid, pid, kind string, raw []byte) (string, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return "", err
	}
	if !format.ValidID(pid) || !kindName.MatchString(kind) {
		return "", fmt.Errorf("store sidecar: point %q, kind %q: names are not valid", pid, kind)
	}
	key := format.SidecarKey(mid, pid, kind, newID()[:16])
	if _, err := smallobject.Put(ctx, r.st, key, format.KindSidecar, m.sidecarKeyFor(kind), raw); err != nil {
		return "", err
	}
	return key, nil
}

// sidecarKeyFor: key packages are sealed to their recipients already.
func (m *machine) sidecarKeyFor(kind string) *[32]byte {
	if kind == SidecarKeyPackage || kind == SidecarHeaderPackage {
		return nil
	}
	return m.Sidecar
}

var kindName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// Sidecars reads all statements about a recovery point, in the order of their
// keys. Damaged ones come back as an error beside the good ones.
func (r *Repository) Sidecars(ctx context.Context, mid, pid string) ([]Sidecar, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	prefix := format.SidecarPrefix(mid, pid)
	var keys []string
	if err := r.st.List(ctx, prefix, func(i store.Info) error {
		if len(keys) >= 100000 {
			return fmt.Errorf("more than 100000 sidecars: %w", ErrDamaged)
		}
		keys = append(keys, i.Key)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("list sidecars: %w", err)
	}
	var out []Sidecar
	var bad []error
	for _, key := range keys {
		s, err := r.readSidecar(ctx, m, key, prefix)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		out = append(out, s)
	}
	return out, errors.Join(bad...)
}

func (r *Repository) readSidecar(ctx context.Context, m *machine, key, prefix string) (Sidecar, error) {
	name := strings.TrimPrefix(key, prefix)
	at := strings.LastIndexByte(name, '-')
	if at < 1 {
		return Sidecar{}, &DamageError{Object: key, Machine: m.Machine.ID, Err: format.ErrCorrupt}
	}
	kind := name[:at]
	raw, err := smallobject.Get(ctx, r.st, key, format.KindSidecar, m.sidecarKeyFor(kind))
	if err != nil {
		return Sidecar{}, err
	}
	return Sidecar{Kind: kind, Key: key, Raw: raw}, nil
}

// clock is the time to record; it never goes into a decision about order.
func (r *Repository) clock() time.Time { return r.now().UTC().Truncate(time.Millisecond) }
