package prove

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
)

// AddRequest takes a secret into custody.
type AddRequest struct {
	Machine string // id
	Volume  string // "DISK/VOLUME", "" = the whole machine
	Kind    diskcrypt.Kind
	Secret  envelope.Secret // the caller wipes it
	Keep    bool            // keep it, pre-active, although it opens nothing
	// SecretID adds a version to this secret; "" finds the machine's own of that
	// scope and kind. New makes a secret of its own.
	SecretID string
	New      bool
	// Note says where it comes from, for the version's history; "" = from a user.
	Note     string
	Progress Progress
}

// AddResult says what the secret opens and what became of it.
type AddResult struct {
	Version     keymanager.Version // as kept
	Existing    bool               // the same bytes were in custody already
	Opens       []Opening          // Point "" = the disk as it is now
	Proven      []string           // recovery points that are proven now and were not before
	Deactivated []keymanager.Ref   // earlier versions that it succeeds
	Results     []Result           // of proving what it opens
	Messages    []string
}

// NothingOpensError says that the secret opens none of the headers; nothing
// was kept anywhere. errors.Is(err, diskcrypt.ErrWrongSecret) holds where at
// least one header was tried to an end.
type NothingOpensError struct {
	Headers int      // distinct headers that it was tried on
	Stopped []string // headers that could not be tried, and why
}

func (e *NothingOpensError) Error() string {
	switch {
	case e.Headers == 0 && len(e.Stopped) == 0:
		return "add secret: there is no recovery point and no readable disk to try it on"
	case e.Headers == 0:
		return "add secret: it could not be tried: " + strings.Join(e.Stopped, "; ")
	case len(e.Stopped) > 0:
		return fmt.Sprintf("add secret: it opens no protector of %d headers; not tried: %s", e.Headers, strings.Join(e.Stopped, "; "))
	default:
		return fmt.Sprintf("add secret: it opens no protector of %d headers", e.Headers)
	}
}

// Unwrap lets callers see that the secret was tried and is wrong.
func (e *NothingOpensError) Unwrap() error {
	if e.Headers == 0 {
		return nil
	}
	return diskcrypt.ErrWrongSecret
}

// distinctHeader is one header, and everywhere it is.
type distinctHeader struct {
	volume  diskcrypt.Volume
	request custody.VolumeRequest
	points  custody.PointReader
	uses    []Opening // where it is; Secret and Protectors are empty
	newest  bool      // of its volume: the live one, or the newest recovery point's
	tried   custody.Tried
	opened  []string // protectors
}

// AddSecret tries a secret on every distinct header of the machine, the disks as they
// are now first, then the recovery points from the newest, and keeps it if it
// opens any, or if req.Keep. Then it proves every recovery point that it opens.
func AddSecret(ctx context.Context, d Deps, req AddRequest) (AddResult, error) {
	d = d.withDefaults()
	a := adder{Deps: d, req: req}
	res, err := a.add(ctx)
	name := cmp.Or(a.machine.Name, req.Machine)
	detail := map[string]string{"kind": string(req.Kind), "volume": req.Volume}
	switch {
	case err == nil:
		detail["secret"] = res.Version.Ref.String()
		d.audit(ctx, "secret.add", name, audit.Done, "", detail)
	case errors.Is(err, diskcrypt.ErrWrongSecret):
		d.audit(ctx, "secret.add", name, audit.Refused, "it opens nothing", detail)
	default:
		d.audit(ctx, "secret.add", name, audit.Failed, "", detail)
	}
	return res, err
}

type adder struct {
	Deps
	req     AddRequest
	machine catalog.Machine
	headers []*distinctHeader
	stopped []string
	res     AddResult
}

func (a *adder) add(ctx context.Context) (AddResult, error) {
	if a.req.Secret.Len() == 0 {
		return a.res, fmt.Errorf("add secret: %w: it is empty", keymanager.ErrInvalid)
	}
	if !slices.Contains(diskcrypt.Kinds, a.req.Kind) {
		return a.res, fmt.Errorf("add secret: %w: kind %q", keymanager.ErrInvalid, a.req.Kind)
	}
	if a.Manager == nil {
		return a.res, fmt.Errorf("add secret: %w", keymanager.ErrUnavailable)
	}
	// Asked before anything is tried: a manager that cannot keep the secret is told at once.
	infos, err := a.Manager.List(ctx)
	if err != nil {
		return a.res, fmt.Errorf("add secret: %w", err)
	}
	if a.machine, err = a.Catalog.Machines.Get(ctx, a.req.Machine); err != nil {
		return a.res, fmt.Errorf("add secret: %w", err)
	}
	closeAll, err := a.findHeaders(ctx)
	defer closeAll()
	if err != nil {
		return a.res, fmt.Errorf("add secret: %w", err)
	}
	tried, err := a.tryAll(ctx)
	if err != nil {
		return a.res, fmt.Errorf("add secret: %w", err)
	}
	if len(a.res.Opens) == 0 && !a.req.Keep {
		return a.res, &NothingOpensError{Headers: tried, Stopped: a.stopped}
	}
	if err := a.keep(ctx, infos); err != nil {
		return a.res, fmt.Errorf("add secret: %w", err)
	}
	for _, s := range a.stopped {
		a.res.Messages = append(a.res.Messages, "not tried: "+s)
	}
	if err := a.settle(ctx, infos); err != nil {
		return a.res, fmt.Errorf("add secret: %w", err)
	}
	return a.res, a.proveOpened(ctx)
}

// inScope says whether the request is about this volume.
func (a *adder) inScope(disk string, v diskcrypt.Volume) bool {
	scope := a.req.Volume == "" || a.req.Volume == (custody.VolumeKey{Disk: disk, Volume: v.ID}).String()
	return scope && v.HeaderDigest != "" && custody.KindFits(a.req.Kind, v.Type)
}

// findHeaders collects the distinct headers, newest first.
func (a *adder) findHeaders(ctx context.Context) (closeAll func(), err error) {
	var closers []func()
	closeAll = func() {
		for _, c := range closers {
			c()
		}
	}
	newest := map[custody.VolumeKey]bool{} // volumes whose newest header was seen
	if a.Live != nil {
		disks, err := a.Live(ctx, a.machine)
		for _, l := range disks {
			if l.Close != nil {
				closers = append(closers, l.Close)
			}
		}
		if err != nil {
			a.Log.Warn("open live disks", "machine", a.machine.Name, "error", err)
			a.stopped = append(a.stopped, fmt.Sprintf("the disks as they are now: %v", err))
		}
		for _, l := range disks {
			if err := a.liveHeaders(ctx, l, newest); err != nil {
				if ctx.Err() != nil {
					return closeAll, ctx.Err()
				}
				a.Log.Warn("inspect live disk", "disk", l.ID, "error", err)
				a.stopped = append(a.stopped, fmt.Sprintf("disk %s as it is now cannot be read", l.ID))
			}
		}
	}
	if a.Repo == nil {
		return closeAll, nil
	}
	points, err := a.Catalog.Points.List(ctx, catalog.PointQuery{Machine: a.machine.ID, Bare: true})
	if err != nil {
		return closeAll, err
	}
	r := runner{Deps: a.Deps, views: map[string]*View{}, points: map[string][]repository.Point{}}
	for _, p := range slices.Backward(points) {
		if !p.DeletedAt.IsZero() {
			continue
		}
		s, err := r.subject(ctx, p.ID)
		if err != nil {
			if ctx.Err() != nil {
				return closeAll, ctx.Err()
			}
			if errors.Is(err, errNotListed) { // it is in a copy only, and was tried while it was here
				a.Log.Info("recovery point is not tried: the repository does not list it", "point", p.ID)
				continue
			}
			a.Log.Warn("read recovery point", "point", p.ID, "error", err)
			a.stopped = append(a.stopped, fmt.Sprintf("recovery point %s: its manifest cannot be read", p.ID))
			continue
		}
		closers = append(closers, s.reader.Close)
		for _, v := range s.volumes {
			req := custody.VolumeRequest{Disk: v.disk, ContentRoot: v.contentRoot, Volume: v.volume, HeaderSize: v.headerSize}
			a.note(p.ID, v.disk, v.volume, req, s.reader, newest)
		}
	}
	return closeAll, nil
}

func (a *adder) liveHeaders(ctx context.Context, l LiveDisk, newest map[custody.VolumeKey]bool) error {
	reader := liveReader{l.ID: l}
	o := diskcrypt.FindOptions{Formats: a.Formats, Declared: l.Declared}
	if l.Header != nil {
		o.Detached = map[string]diskcrypt.Header{diskcrypt.WholeDisk: {R: within{l.Header, l.HeaderSize}, Size: l.HeaderSize}}
	}
	rep, err := diskcrypt.Find(ctx, within{l.Disk, l.Size}, l.Size, o)
	if err != nil {
		return err
	}
	for _, v := range rep.Volumes {
		req := custody.VolumeRequest{Disk: l.ID, Volume: v}
		if v.Detached {
			req.HeaderSize = l.HeaderSize
		}
		a.note("", l.ID, v, req, reader, newest)
	}
	return nil
}

// within is readWithin as an io.ReaderAt.
type within struct {
	r    io.ReaderAt
	size int64
}

func (w within) ReadAt(p []byte, off int64) (int, error) { return readWithin(w.r, w.size, p, off) }

// note adds one place of a header.
func (a *adder) note(point, disk string, v diskcrypt.Volume, req custody.VolumeRequest, points custody.PointReader, newest map[custody.VolumeKey]bool) {
	if !a.inScope(disk, v) {
		return
	}
	use := Opening{Point: point, Disk: disk, Volume: v.ID}
	k := custody.VolumeKey{Disk: disk, Volume: v.ID}
	isNewest := !newest[k]
	newest[k] = true
	for _, h := range a.headers {
		if h.volume.HeaderDigest == v.HeaderDigest && h.volume.Type == v.Type && h.volume.Detached == v.Detached {
			h.uses = append(h.uses, use)
			h.newest = h.newest || isNewest
			return
		}
	}
	a.headers = append(a.headers, &distinctHeader{volume: v, request: req, points: points, uses: []Opening{use}, newest: isNewest})
}

// tryAll tries the secret on every header; it returns on how many to an end.
func (a *adder) tryAll(ctx context.Context) (tried int, err error) {
	for i, h := range a.headers {
		if a.req.Progress != nil {
			a.req.Progress(i, len(a.headers), h.uses[0].Point)
		}
		name := custody.VolumeKey{Disk: h.request.Disk, Volume: h.volume.ID}.String()
		why := "there is no prover"
		if a.Prover != nil {
			out, err := a.Prover.Try(ctx, custody.Request{
				Volumes: []custody.VolumeRequest{h.request}, AllProtectors: true,
				Inline: a.req.Secret, InlineKind: a.req.Kind,
			}, h.points)
			if ctx.Err() != nil {
				return tried, ctx.Err()
			}
			switch {
			case err != nil:
				a.Log.Warn("prover", "volume", name, "error", err)
				why = proverWords(err)
			case len(out.Volumes[0].Attempts) == 0:
				why = out.Volumes[0].Error
			default:
				at := out.Volumes[0].Attempts[0]
				h.tried, h.opened, why = at.Tried, at.Protectors, at.Why
			}
		}
		if h.tried != custody.Opens && h.tried != custody.Refused {
			a.stopped = append(a.stopped, fmt.Sprintf("header of %s: %s", name, why))
			continue
		}
		tried++
		if h.tried == custody.Opens {
			for _, u := range h.uses {
				u.Protectors = h.opened
				a.res.Opens = append(a.res.Opens, u)
			}
		}
	}
	return tried, nil
}

// keep puts the secret into the key manager.
func (a *adder) keep(ctx context.Context, infos []keymanager.Info) error {
	put := keymanager.Put{
		ID: a.target(infos), Kind: string(a.req.Kind), State: keymanager.Active, Secret: a.req.Secret,
		Labels: map[string]string{keymanager.LabelMachine: a.machine.ID, keymanager.LabelVolume: a.req.Volume},
		Reason: cmp.Or(a.req.Note, "added by "+cmp.Or(a.Actor, "a user")),
	}
	if len(a.res.Opens) == 0 {
		put.State = keymanager.PreActive
	}
	v, err := a.Manager.Put(ctx, put)
	if err != nil {
		return err
	}
	a.res.Version = v
	_, a.res.Existing = findVersion(infos, v.Ref)
	for i := range a.res.Opens {
		a.res.Opens[i].Secret = v.Ref
	}
	for _, h := range a.headers {
		if h.tried != custody.Opens && h.tried != custody.Refused {
			continue
		}
		at := catalog.Attempt{HeaderDigest: h.volume.HeaderDigest, Secret: v.Ref.ID, Version: v.Ref.Version, Opened: h.opened, Time: a.Now().UTC()}
		if err := a.Catalog.Proofs.PutAttempt(ctx, at); err != nil {
			return err
		}
	}
	return nil
}

// target is the secret that gets the new version; "" = a new one.
func (a *adder) target(infos []keymanager.Info) string {
	if a.req.SecretID != "" || a.req.New {
		return a.req.SecretID
	}
	var own []keymanager.Info
	for _, s := range infos {
		if s.Kind == string(a.req.Kind) && s.Labels[keymanager.LabelMachine] == a.machine.ID && s.Labels[keymanager.LabelVolume] == a.req.Volume && len(s.Versions) > 0 {
			own = append(own, s)
		}
	}
	if len(own) == 0 {
		return ""
	}
	// Several are there only where somebody asked for another: the first is the machine's.
	oldest := slices.MinFunc(own, func(x, y keymanager.Info) int {
		return cmp.Or(x.Versions[0].Created.Compare(y.Versions[0].Created), cmp.Compare(x.ID, y.ID))
	})
	return oldest.ID
}

func findVersion(infos []keymanager.Info, ref keymanager.Ref) (keymanager.Version, bool) {
	for _, s := range infos {
		for _, v := range s.Versions {
			if v.Ref == ref {
				return v, true
			}
		}
	}
	return keymanager.Version{}, false
}

// settle brings the states of the secret's versions in line with what opens
// the newest headers: one that opens only older ones belongs to the archive.
func (a *adder) settle(ctx context.Context, infos []keymanager.Info) error {
	if len(a.res.Opens) == 0 {
		a.res.Messages = append(a.res.Messages, "it opens nothing; it is kept pre-active, without a hold")
		return nil
	}
	opensNewest, refusedNewest, hasNewest := false, true, false
	for _, h := range a.headers {
		if !h.newest {
			continue
		}
		hasNewest = true
		opensNewest = opensNewest || h.tried == custody.Opens
		refusedNewest = refusedNewest && h.tried == custody.Refused
	}
	ref := a.res.Version.Ref
	switch state := a.res.Version.State; {
	case opensNewest && state == keymanager.Disabled:
		a.res.Messages = append(a.res.Messages, "the version is disabled; enable it so that it can be proven")
	case opensNewest && state != keymanager.Active && state != keymanager.Compromised:
		if err := a.setState(ctx, ref, keymanager.Active, "it opens the newest header"); err != nil {
			return err
		}
	case hasNewest && refusedNewest && state == keymanager.PreActive:
		// From pre-active the archive is reached by way of active alone.
		if err := a.setState(ctx, ref, keymanager.Active, "it opens recovery points"); err != nil {
			return err
		}
		fallthrough
	case hasNewest && refusedNewest && state == keymanager.Active:
		if err := a.setState(ctx, ref, keymanager.Deactivated, "it opens earlier recovery points, not the newest header"); err != nil {
			return err
		}
		a.res.Messages = append(a.res.Messages, "it opens earlier recovery points only, and goes to the archive (deactivated)")
	}
	if !opensNewest {
		return nil
	}
	for _, s := range infos {
		if s.ID != ref.ID {
			continue
		}
		for _, v := range s.Versions {
			if v.Ref == ref || v.State != keymanager.Active {
				continue
			}
			superseded, err := a.superseded(ctx, v.Ref, diskcrypt.Kind(s.Kind))
			if err != nil {
				return err
			}
			if !superseded {
				continue
			}
			if err := a.setState(ctx, v.Ref, keymanager.Deactivated, fmt.Sprintf("it no longer opens the newest header; %s does", ref)); err != nil {
				return err
			}
			a.res.Deactivated = append(a.res.Deactivated, v.Ref)
			a.res.Messages = append(a.res.Messages, fmt.Sprintf("%s no longer opens the newest header and goes to the archive (deactivated); it stays held for the recovery points that it opens", v.Ref))
		}
	}
	return nil
}

func (a *adder) setState(ctx context.Context, ref keymanager.Ref, s keymanager.State, reason string) error {
	if err := a.Manager.SetState(ctx, ref, s, reason); err != nil {
		return err
	}
	if ref == a.res.Version.Ref {
		a.res.Version.State = s
	}
	a.audit(ctx, "secret.state", ref.String(), audit.Done, reason, map[string]string{"state": string(s)})
	return nil
}

// superseded says whether a version was found to open none of the newest
// headers. What was not tried to an end is not superseded.
func (a *adder) superseded(ctx context.Context, ref keymanager.Ref, kind diskcrypt.Kind) (bool, error) {
	for _, h := range a.headers {
		if !h.newest {
			continue
		}
		attempts, err := a.Catalog.Proofs.Attempts(ctx, h.volume.HeaderDigest)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(attempts, func(x catalog.Attempt) bool { return x.Secret == ref.ID && x.Version == ref.Version })
		if i < 0 {
			at, err := a.tryVersion(ctx, h, ref, kind)
			if err != nil || at == nil {
				return false, err
			}
			attempts, i = []catalog.Attempt{*at}, 0
		}
		if len(attempts[i].Opened) > 0 {
			return false, nil
		}
	}
	return true, nil
}

// tryVersion tries a version on a header and records it; nil where it could not.
func (a *adder) tryVersion(ctx context.Context, h *distinctHeader, ref keymanager.Ref, kind diskcrypt.Kind) (*catalog.Attempt, error) {
	req := h.request
	req.Candidates = []custody.CandidateRequest{{Secret: ref, Kind: kind}}
	out, err := a.Prover.Try(ctx, custody.Request{Volumes: []custody.VolumeRequest{req}}, h.points)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil || len(out.Volumes[0].Attempts) == 0 || out.Volumes[0].Attempts[0].Tried == custody.Stopped {
		return nil, nil
	}
	at := catalog.Attempt{HeaderDigest: h.volume.HeaderDigest, Secret: ref.ID, Version: ref.Version, Opened: out.Volumes[0].Attempts[0].Protectors, Time: a.Now().UTC()}
	return &at, a.Catalog.Proofs.PutAttempt(ctx, at)
}

// proveOpened proves the recovery points that the secret opens.
func (a *adder) proveOpened(ctx context.Context) error {
	var ids []string
	for _, o := range a.res.Opens {
		if o.Point != "" && !slices.Contains(ids, o.Point) {
			ids = append(ids, o.Point)
		}
	}
	before, err := a.states(ctx, ids)
	if err != nil {
		return err
	}
	results, err := Points(ctx, a.Deps, ids, a.req.Progress)
	a.res.Results = results
	for _, r := range results {
		switch was := before[r.Point]; {
		case r.Verdict.State == was:
		case r.Verdict.State == custody.Proven:
			a.res.Proven = append(a.res.Proven, r.Point)
		case r.Verdict.State == custody.AtRisk:
			a.res.Messages = append(a.res.Messages, fmt.Sprintf("recovery point %s opens, but is at risk: %s", r.Point, strings.Join(r.Verdict.Why, "; ")))
		}
		for _, p := range r.Problems {
			if !slices.Contains(a.res.Messages, p) {
				a.res.Messages = append(a.res.Messages, p)
			}
		}
	}
	return err
}

// states are the states of recovery points of the machine now.
func (a *adder) states(ctx context.Context, ids []string) (map[string]custody.State, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	view, err := Load(ctx, a.Deps, a.machine.ID)
	if err != nil {
		return nil, err
	}
	out := map[string]custody.State{}
	for _, p := range view.points {
		if slices.Contains(ids, p.ID) {
			out[p.ID] = view.Verdict(p).State
		}
	}
	return out, nil
}
