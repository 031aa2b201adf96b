// Package restores is the routes of restores.
package restores

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/headers"
	"github.com/lockstep-backup/lockstep/server/internal/show"
	"github.com/lockstep-backup/lockstep/target"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "start-restore", http.MethodPost, "/v1/restores", "Write disks back, still encrypted", s.startRestore, frame.Status(http.StatusAccepted))
	frame.Route(f, "stream-restore", http.MethodPost, "/v1/restores/stream", "Give the bytes of a disk, in order, still encrypted", s.stream, func(o *huma.Operation) {
		o.Responses = map[string]*huma.Response{"200": {
			Description: "The bytes; " + api.SizeHeader + " says how many, and the trailer " + api.OutcomeTrailer + " (a StreamOutcome) whether they are all",
			Content:     map[string]*huma.MediaType{"application/octet-stream": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
		}}
	})
}

func (s routes) startRestore(ctx context.Context, req *frame.In[api.RestoreRequest]) (*frame.Out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "point.restore", Object: r.Point}
	for _, t := range r.Targets {
		e.Detail = frame.WithDetail(e.Detail, "disk "+partName(t.RestorePart), frame.Clip(t.Target))
	}
	// Formats are the target's business, but a wrong one is wrong usage.
	if r.Format != "" && r.Format != "raw" {
		return nil, s.Refuse(ctx, e, frame.Usage("restore: format %q is not available in this version (raw is)", r.Format))
	}
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	p, err := s.ResolvePoint(ctx, c, r.Point)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	e.Object = p.ID
	if p.Incomplete {
		e.Detail = frame.WithDetail(e.Detail, "incomplete", "true")
	}
	return s.Start(ctx, "restore", e, func(ctx context.Context, rep *job.Reporter) (frame.Result, error) {
		return s.restore(s.Limited(ctx, r.Rates), c, p, r, rep)
	})
}

// restore begins with the pre-flight: which secrets open what is restored, and
// are they there. It does not keep a ciphertext from being restored.
func (s routes) restore(ctx context.Context, c *catalog.Catalog, p catalog.Point, r api.RestoreRequest, rep *job.Reporter) (frame.Result, error) {
	v, err := s.PointView(ctx, c, p)
	if err != nil {
		return frame.Result{}, err
	}
	res := &api.RestoreResult{Point: p.ID, State: v.State, Keys: []api.PointKey{}, Disks: []api.RestoredDisk{}}
	lease, err := s.Lease(ctx, p.ID, "a restore")
	if err != nil {
		return frame.Result{JobResult: api.JobResult{Restore: res}}, err
	}
	defer lease.Release()
	near, rest, err := s.Nearest(ctx, p, r.Repository, func(format string, args ...any) { rep.Warning(format, args...) })
	if err != nil {
		return frame.Result{JobResult: api.JobResult{Restore: res}}, err
	}
	mf := near.Manifest
	req := restore.Request{
		Repository: near.Repo, Elsewhere: rest, Manifest: mf, Open: s.OpenTarget, Options: target.Options{Force: r.Force, Format: r.Format, Larger: r.Larger}, Progress: frame.Progress(rep),
		KeepGoing: r.KeepGoing,
	}
	var parts []wanted
	for i, t := range r.Targets {
		w, err := find(mf, t.RestorePart)
		if err != nil {
			return frame.Result{JobResult: api.JobResult{Restore: res}}, err
		}
		r.Targets[i].Disk = w.disk
		parts = append(parts, w)
		req.Targets = append(req.Targets, restore.Target{Disk: w.disk, Part: w.part, Extents: w.extents, Target: t.Target})
	}
	res.Keys = keys(show.Preflight(v, r.Targets), v, parts)
	for _, k := range res.Keys {
		if len(k.Opens) > 0 {
			rep.Message("%s/%s: opened by %s (%s)", k.Disk, k.Volume, strings.Join(k.Opens, ", "), k.State)
		} else {
			rep.Warning("%s/%s: no secret in custody is proven to open it (%s)", k.Disk, k.Volume, k.State)
		}
	}
	done, err := restore.Run(ctx, req)
	out := frame.Result{JobResult: api.JobResult{Restore: res}, Exit: frame.ExitOfState(v.State)}
	for i, d := range done {
		res.Disks = append(res.Disks, restored(d, r.Targets[i].RestorePart))
		if d.Beyond > 0 {
			rep.Warning("disk %s: %s", d.ID, largerText(d, parts[i]))
		}
		if d.Borrowed > 0 {
			rep.Warning("%s", borrowedText(d, near.Place))
		}
		if len(d.Unread) > 0 {
			out.Exit = api.ExitDamaged
			rep.Warning("disk %s: %d ranges could not be read when the recovery point was made, and are zeroes", d.ID, len(d.Unread))
		}
	}
	for _, d := range res.Disks {
		if len(d.Damaged) > 0 {
			out.Exit, out.Found = api.ExitDamaged, true
			rep.Warning("disk %s: %s", d.ID, lostText(d))
		}
	}
	for _, d := range mf.Disks {
		apart, ierr := headers.Detached(d)
		if ierr != nil || !slices.ContainsFunc(r.Targets, func(t api.RestoreTarget) bool { return t.Disk == d.ID }) {
			continue // what cannot be read says so where it is shown
		}
		for _, v := range apart {
			rep.Warning("%s/%s: its header is not on the disk, and needed to open it: 'lockstep header export %s/%s/%s --to FILE'", d.ID, v, p.ID, d.ID, v)
		}
	}
	return out, err
}

// restored shows a disk that was written.
func restored(d restore.Disk, named api.RestorePart) api.RestoredDisk {
	out := api.RestoredDisk{
		ID: d.ID, Target: d.Target, SizeBytes: d.Size, WrittenBytes: d.Written, ContentRoot: d.ContentRoot, BeyondBytes: d.Beyond,
		UnreadRanges: show.Ranges(d.Unread), Damaged: damaged(d), Seconds: d.Seconds,
	}
	if d.Part.Length > 0 {
		out.Name = partName(named)
		out.Part = &api.Range{Offset: d.Part.Offset, Length: d.Part.Length}
	}
	return out
}

// borrowedText says what came from another repository than the disk.
func borrowedText(d restore.Disk, from frame.Place) string {
	return fmt.Sprintf("disk %s: %d bytes could not be read in repository %s, and were taken from another: %s", d.ID, d.Borrowed, from.Name, show.OneLine(d.BorrowedFor.Error()))
}

// largerText says what to do with a target that is larger than the disk. The
// disk's bytes are not changed for it: they are what was proven.
func largerText(d restore.Disk, w wanted) string {
	text := fmt.Sprintf("%s has %d bytes more, which are as they were", d.Target, d.Beyond)
	if w.gpt && w.part.Length == 0 {
		text += fmt.Sprintf("; the backup of its partition table belongs at the end: 'sgdisk --move-second-header %s' moves it there, then a partition can be enlarged", d.Target)
	}
	return text
}

// partName is what is restored, for the audit log.
func partName(p api.RestorePart) string {
	switch {
	case p.Volume != "":
		return frame.Clip(p.Volume)
	case p.Partition != "":
		return frame.Clip(p.Disk + "/" + p.Partition)
	default:
		return frame.Clip(p.Disk)
	}
}

// damaged are the ranges that are zeroes although data was stored there.
func damaged(d restore.Disk) []api.DamagedRange {
	out := make([]api.DamagedRange, 0, len(d.Damaged))
	for _, x := range d.Damaged {
		out = append(out, api.DamagedRange{
			Range: api.Range{Offset: x.Range.Offset, Length: x.Range.Length}, Object: x.Object, Error: show.OneLine(x.Err.Error()),
		})
	}
	return out
}

func lostText(d api.RestoredDisk) string {
	var n int64
	for _, r := range d.Damaged {
		n += r.Length
	}
	return fmt.Sprintf("%d bytes in %d ranges are damaged in the repository, and zeroes in %s", n, len(d.Damaged), d.Target)
}
