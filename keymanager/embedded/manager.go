package embedded

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// Bounds on what callers give, in bytes; they keep one call from filling a record.
const (
	maxText   = 4096 // a reason, a label
	maxPart   = 256  // a part of a hold
	maxLabels = 64
)

// Put adds a version; see keymanager.Manager. Two secrets may hold the same
// bytes. A version whose file is damaged equals nothing, so that putting the
// bytes again repairs the secret.
func (m *Manager) Put(ctx context.Context, p keymanager.Put) (keymanager.Version, error) {
	v, err := m.put(ctx, p)
	if err != nil {
		return keymanager.Version{}, fmt.Errorf("put secret: %w", err)
	}
	return v, nil
}

func (m *Manager) put(ctx context.Context, p keymanager.Put) (keymanager.Version, error) {
	if p.ID == "" {
		p.ID = newID()
	}
	if err := checkPut(p); err != nil {
		return keymanager.Version{}, err
	}
	t, end, err := m.begin(ctx, true)
	if err != nil {
		return keymanager.Version{}, err
	}
	defer end()
	name := t.k.nameOf(p.ID)
	r, err := t.settle(name)
	if err != nil {
		return keymanager.Version{}, err
	}
	if r != nil && r.Kind != p.Kind {
		return keymanager.Version{}, fmt.Errorf("%w: secret %s is a %s, not a %s", keymanager.ErrInvalid, p.ID, r.Kind, p.Kind)
	}
	same, err := t.findEqual(name, r, p.Secret)
	if err != nil {
		return keymanager.Version{}, err
	}
	if same != nil {
		return same.public(r.ID), nil
	}
	return t.add(name, r, p)
}

func (t *transaction) findEqual(name string, r *record, secret envelope.Secret) (*version, error) {
	if r == nil {
		return nil, nil
	}
	for _, v := range r.Versions {
		if v.State == keymanager.Destroyed {
			continue
		}
		_, bytesOf, err := t.bytesOf(name, v)
		if errors.Is(err, keymanager.ErrDamaged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		equal := bytesOf.Equal(secret)
		bytesOf.Wipe()
		if equal {
			return v, nil
		}
	}
	return nil, nil
}

func (t *transaction) add(name string, r *record, p keymanager.Put) (keymanager.Version, error) {
	b := birth{
		ID: p.ID, Kind: p.Kind, Labels: p.Labels, Version: 1,
		State: p.State, Created: t.now().UTC().Round(0), Reason: p.Reason,
	}
	if r != nil {
		b.Version = len(r.Versions) + 1
	}
	data, err := encodeVersion(t.k, name, b, p.Secret)
	if err != nil {
		return keymanager.Version{}, err
	}
	if err := t.durable("folder", func() error { return makeFolder(t.folder(name)) }); err != nil {
		return keymanager.Version{}, err
	}
	err = t.durable("version", func() error {
		return envelope.WriteNewFileDurable(t.versionPath(name, b.Version), data, 0o600)
	})
	if err != nil {
		return keymanager.Version{}, err
	}
	r = b.join(r)
	if err := t.commit(name, r); err != nil {
		return keymanager.Version{}, err
	}
	return r.find(b.Version).public(r.ID), nil
}

// Get returns the bytes of a version; see keymanager.Manager. keymanager.ErrDamaged
// where they do not authenticate or are gone.
func (m *Manager) Get(ctx context.Context, ref keymanager.Ref) (envelope.Secret, error) {
	secret, err := m.get(ctx, ref)
	if err != nil {
		return envelope.Secret{}, fmt.Errorf("get secret %s: %w", ref, err)
	}
	return secret, nil
}

func (m *Manager) get(ctx context.Context, ref keymanager.Ref) (envelope.Secret, error) {
	t, end, err := m.begin(ctx, false)
	if err != nil {
		return envelope.Secret{}, err
	}
	defer end()
	name := t.k.nameOf(ref.ID)
	l, err := t.load(name)
	if err != nil {
		return envelope.Secret{}, err
	}
	v := l.record.find(ref.Version)
	switch {
	case v == nil:
		return envelope.Secret{}, keymanager.ErrNotFound
	case v.State == keymanager.Destroyed:
		return envelope.Secret{}, keymanager.ErrDestroyed
	case v.State == keymanager.Disabled:
		return envelope.Secret{}, keymanager.ErrDisabled
	}
	_, secret, err := t.bytesOf(name, v)
	return secret, err
}

// List returns all secrets, ordered by id; see keymanager.Manager.
func (m *Manager) List(ctx context.Context) ([]keymanager.Info, error) {
	infos, err := m.list(ctx)
	if err != nil {
		return infos, fmt.Errorf("list secrets: %w", err)
	}
	return infos, nil
}

func (m *Manager) list(ctx context.Context) ([]keymanager.Info, error) {
	t, end, err := m.begin(ctx, false)
	if err != nil {
		return nil, err
	}
	defer end()
	names, err := t.names()
	if err != nil {
		return nil, err
	}
	infos := []keymanager.Info{}
	var broken []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l, err := t.load(name)
		if errors.Is(err, keymanager.ErrDamaged) {
			broken = append(broken, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if l.record == nil {
			continue
		}
		infos = append(infos, l.record.info())
	}
	sort.Slice(infos, func(i, j int) bool { return infos[i].ID < infos[j].ID })
	return infos, errors.Join(broken...)
}

func (r *record) info() keymanager.Info {
	info := keymanager.Info{ID: r.ID, Kind: r.Kind, Labels: r.Labels}
	for _, v := range r.Versions {
		info.Versions = append(info.Versions, v.public(r.ID))
	}
	return info
}

// SetState records a transition; see keymanager.CheckTransition.
func (m *Manager) SetState(ctx context.Context, ref keymanager.Ref, s keymanager.State, reason string) error {
	return m.change(ctx, "set state of secret", ref, func(t *transaction, name string, r *record, v *version) error {
		if err := checkText("reason", reason, maxText); err != nil {
			return err
		}
		if err := keymanager.CheckTransition(ref, v.State, s, reason); err != nil || v.State == s {
			return err
		}
		v.enter(t, s, reason)
		return t.commit(name, r)
	})
}

// Hold places a hold; placed twice, the first stays.
func (m *Manager) Hold(ctx context.Context, ref keymanager.Ref, h keymanager.Hold) error {
	return m.change(ctx, "hold secret", ref, func(t *transaction, name string, r *record, v *version) error {
		if err := checkHold(h); err != nil {
			return err
		}
		if v.State == keymanager.Destroyed {
			return keymanager.ErrDestroyed
		}
		if v.holdIndex(h.Key()) >= 0 {
			return nil
		}
		h.Since = h.Since.Round(0).UTC()
		v.Holds = append(v.Holds, h)
		return t.commit(name, r)
	})
}

// Unhold releases holds with one write; those that are not there are released.
func (m *Manager) Unhold(ctx context.Context, ref keymanager.Ref, holds ...keymanager.Hold) error {
	gone := map[string]bool{}
	for _, h := range holds {
		gone[h.Key()] = true
	}
	return m.change(ctx, "release hold of secret", ref, func(t *transaction, name string, r *record, v *version) error {
		left := slices.DeleteFunc(slices.Clone(v.Holds), func(h keymanager.Hold) bool { return gone[h.Key()] })
		if len(left) == len(v.Holds) {
			return nil
		}
		v.Holds = left
		return t.commit(name, r)
	})
}

// Destroy wipes a version's bytes; *keymanager.HeldError while it has holds.
func (m *Manager) Destroy(ctx context.Context, ref keymanager.Ref, reason string) error {
	return m.change(ctx, "destroy secret", ref, func(t *transaction, name string, r *record, v *version) error {
		if err := checkText("reason", reason, maxText); err != nil {
			return err
		}
		if len(v.Holds) > 0 {
			return &keymanager.HeldError{Ref: ref, Holds: append([]keymanager.Hold(nil), v.Holds...)}
		}
		path := t.versionPath(name, v.Number)
		if v.State == keymanager.Destroyed {
			return t.wipeFile(path)
		}
		t.index.Wiping = append(t.index.Wiping, wiping{Name: name, Version: v.Number})
		if err := t.writeIndex(); err != nil {
			return err
		}
		v.enter(t, keymanager.Destroyed, reason)
		if err := t.writeRecord(name, r); err != nil {
			return err
		}
		t.index.Records[name] = r.Generation
		return t.finishWipes()
	})
}

// change runs do on one version under the exclusive lock.
func (m *Manager) change(ctx context.Context, operation string, ref keymanager.Ref,
	do func(*transaction, string, *record, *version) error,
) error {
	err := m.changeLocked(ctx, ref, do)
	if err == nil {
		return nil
	}
	// These two name operation and secret themselves.
	if _, ok := errors.AsType[*keymanager.TransitionError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*keymanager.HeldError](err); ok {
		return err
	}
	return fmt.Errorf("%s %s: %w", operation, ref, err)
}

func (m *Manager) changeLocked(ctx context.Context, ref keymanager.Ref,
	do func(*transaction, string, *record, *version) error,
) error {
	t, end, err := m.begin(ctx, true)
	if err != nil {
		return err
	}
	defer end()
	name := t.k.nameOf(ref.ID)
	r, err := t.settle(name)
	if err != nil {
		return err
	}
	v := r.find(ref.Version)
	if v == nil {
		return keymanager.ErrNotFound
	}
	return do(t, name, r, v)
}

func (v *version) enter(t *transaction, s keymanager.State, reason string) {
	v.State = s
	v.History = append(v.History, keymanager.Transition{State: s, At: t.now().UTC().Round(0), Reason: reason})
}

func newID() string {
	b := make([]byte, 10)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
	return "s-" + strings.ToLower(base32.StdEncoding.EncodeToString(b))
}

func checkPut(p keymanager.Put) error {
	if err := checkID(p.ID); err != nil {
		return err
	}
	if p.Secret.Len() == 0 || p.Secret.Len() > maxSecret {
		return fmt.Errorf("%w: a secret has 1 to %d bytes, this one %d", keymanager.ErrInvalid, maxSecret, p.Secret.Len())
	}
	if p.State != keymanager.PreActive && p.State != keymanager.Active {
		return fmt.Errorf("%w: a version begins pre-active or active, not %q", keymanager.ErrInvalid, p.State)
	}
	if len(p.Labels) > maxLabels {
		return fmt.Errorf("%w: more than %d labels", keymanager.ErrInvalid, maxLabels)
	}
	for k, v := range p.Labels {
		if err := errors.Join(checkText("label", k, maxPart), checkText("label "+k, v, maxText)); err != nil {
			return err
		}
	}
	return errors.Join(checkText("kind", p.Kind, maxPart), checkText("reason", p.Reason, maxText))
}

func checkHold(h keymanager.Hold) error {
	return errors.Join(
		checkText("repository", h.Repository, maxPart), checkText("machine", h.Machine, maxPart),
		checkText("point", h.Point, maxPart), checkText("installer", h.Installer, maxPart),
	)
}

// checkText refuses what JSON would not give back as it was.
func checkText(what, s string, limit int) error {
	if len(s) > limit || !utf8.ValidString(s) {
		return fmt.Errorf("%w: %s is not UTF-8 of at most %d bytes", keymanager.ErrInvalid, what, limit)
	}
	return nil
}
