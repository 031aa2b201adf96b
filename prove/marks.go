package prove

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/repository"
)

// ErrMarkUnread: a mark in the repository cannot be read, and is not known from
// before: what it keeps is not known.
var ErrMarkUnread = errors.New("a pin, tag or legal hold cannot be read")

// SetMark signs a mark about a recovery point, or one that takes it back,
// stores it in the repository and records it in the catalog. Kind, Name, Value,
// Set and Reason of m count; the rest is filled in.
func SetMark(ctx context.Context, d Deps, p catalog.Point, m custody.Mark) error {
	d = d.withDefaults()
	fail := func(err error) error { return fmt.Errorf("mark recovery point %s: %w", p.ID, err) }
	// It may have been made in another repository, and be a copy here.
	listed, err := d.Repo.Points(ctx, p.Machine)
	if !slices.ContainsFunc(listed, func(x repository.Point) bool { return x.ID == p.ID }) {
		return fail(errors.Join(fmt.Errorf("repository %s does not list it: %w", d.Repo.ID(), repository.ErrNotFound), err))
	}
	// Those in the repository too: another installation may have set some.
	if _, err := SyncMarks(ctx, d, p.Machine); err != nil && !errors.Is(err, ErrMarkUnread) {
		return fail(err)
	}
	known, err := d.Catalog.Marks.OfMachine(ctx, p.Machine)
	if err != nil {
		return fail(err)
	}
	m.Repository, m.Machine, m.Point, m.Actor, m.Time = d.Repo.ID(), p.Machine, p.ID, d.Actor, d.Now().UTC().Truncate(time.Millisecond)
	m.Reason = strings.TrimSpace(m.Reason)
	m.Sequence = custody.NextSequence(Marks(known), m)
	raw, err := custody.SignMark(m, d.Custodian)
	if err != nil {
		return fail(err)
	}
	// Read back as a stranger would: a custodian's key that the trust log does
	// not know must not seem to have kept anything.
	if m, err = custody.VerifyMark(raw, d.Repo.Trust(), d.Repo.ID(), p.Machine); err != nil {
		return fail(err)
	}
	key, err := d.Repo.PutSidecar(ctx, p.Machine, repository.MachineSidecars, repository.SidecarTag, raw)
	if err != nil {
		return fail(err)
	}
	if err := d.Catalog.Marks.Put(ctx, CatalogMark(key, m)); err != nil {
		return fail(err)
	}
	d.audit(ctx, MarkAction(m), p.ID, audit.Done, m.Reason, MarkDetail(m))
	return nil
}

// MarkAction is what the audit log calls a mark.
func MarkAction(m custody.Mark) string {
	verb := map[string]string{custody.MarkPin: "pin", custody.MarkTag: "tag", custody.MarkLegalHold: "hold"}[m.Kind]
	if !m.Set {
		verb = "un" + verb
	}
	return "point." + verb
}

// MarkDetail is what the audit log has of a mark beside its reason.
func MarkDetail(m custody.Mark) map[string]string {
	switch m.Kind {
	case custody.MarkTag:
		return map[string]string{"tag": m.Name + "=" + m.Value}
	case custody.MarkLegalHold:
		return map[string]string{"case": m.Name}
	default:
		return nil
	}
}

// SyncMarks records in the catalog the marks of a machine that the repository
// has. Doubtful are recovery points that marks name which do not count any more,
// and why. ErrMarkUnread: some cannot be read and are not known from before.
func SyncMarks(ctx context.Context, d Deps, machine string) (doubtful map[string]string, err error) {
	c, err := ReadMachine(ctx, d.Repo, machine)
	if err != nil {
		return nil, fmt.Errorf("read marks: %w", err)
	}
	known, err := d.Catalog.Marks.OfMachine(ctx, machine)
	if err != nil {
		return nil, fmt.Errorf("read marks: %w", err)
	}
	has := map[string]bool{}
	for _, m := range known {
		has[m.Key] = true
	}
	for _, m := range c.Marks {
		if has[m.Key] {
			continue
		}
		if err := d.Catalog.Marks.Put(ctx, m); err != nil {
			return nil, fmt.Errorf("read marks: %w", err)
		}
	}
	var unread []error
	for key, err := range c.unreadMarks {
		if !has[key] {
			unread = append(unread, fmt.Errorf("%w: %w", ErrMarkUnread, err))
		}
	}
	return c.DoubtfulMarks, errors.Join(unread...)
}

// readMark sorts one sidecar that is a mark.
func (c *MachineCustody) readMark(s repository.Sidecar, trust custody.Trust, homes map[string]bool, machine string) error {
	m, err := custody.VerifyMarkOf(s.Raw, trust, homes, machine)
	switch {
	case err == nil:
		c.Marks = append(c.Marks, CatalogMark(s.Key, m))
	case errors.Is(err, custody.ErrRevoked):
		if m.Set && m.Kind != custody.MarkTag {
			c.DoubtfulMarks[m.Point] = "its " + markWord(m) + " is signed by a key that is revoked: state it again, or delete it by itself"
		}
	case errors.Is(err, custody.ErrFormat):
		// A later version's: it may keep something.
		c.unreadMarks[s.Key] = err
	}
	return err
}

func markWord(m custody.Mark) string {
	if m.Kind == custody.MarkLegalHold {
		return "legal hold " + m.Name
	}
	return m.Kind
}

// unreadable picks the marks and policies out of what Sidecars could not read:
// damaged ones by their keys, and what may be one.
func (c *MachineCustody) unreadable(err error) {
	if d, ok := err.(*repository.DamageError); ok { // it wraps several errors, too
		if strings.Contains(d.Object, "/"+repository.SidecarTag+"-") {
			c.unreadMarks[d.Object] = err
		}
		if isPolicy(d.Object) {
			c.Policies.Unread[d.Object] = err
		}
		return
	}
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range list.Unwrap() {
			c.unreadable(e)
		}
		return
	}
	c.unreadMarks[""], c.Policies.Unread[""] = err, err
}

// CatalogMark is what the catalog keeps of a verified mark.
func CatalogMark(key string, m custody.Mark) catalog.Mark {
	return catalog.Mark{
		Key: key, Machine: m.Machine, Point: m.Point, Kind: m.Kind, Name: m.Name, Value: m.Value,
		Set: m.Set, Sequence: m.Sequence, Reason: m.Reason, Actor: m.Actor, Time: m.Time,
	}
}

// Marks are the catalog's marks as statements.
func Marks(all []catalog.Mark) []custody.Mark {
	out := make([]custody.Mark, 0, len(all))
	for _, m := range all {
		out = append(out, custody.Mark{
			Machine: m.Machine, Point: m.Point, Kind: m.Kind, Name: m.Name, Value: m.Value,
			Set: m.Set, Sequence: m.Sequence, Reason: m.Reason, Actor: m.Actor, Time: m.Time,
		})
	}
	return out
}

// MarksOf are the marks of a machine's recovery points that are in force, as
// the catalog has them.
func MarksOf(ctx context.Context, c *catalog.Catalog, machine string) (map[string]custody.Marks, error) {
	all, err := c.Marks.OfMachine(ctx, machine)
	if err != nil {
		return nil, err
	}
	return custody.MarksInForce(Marks(all)), nil
}
