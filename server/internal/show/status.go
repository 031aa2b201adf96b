package show

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
)

// Status shows which secret version opens which of a machine's recovery points
// (all, oldest first): rows newest first, one column for each version.
func Status(m catalog.Machine, all []catalog.Point, view *prove.View) api.MachineStatus {
	st := api.MachineStatus{Machine: m.Name, Secrets: []string{}, States: []string{}, Points: []api.PointSummary{}}
	refs := columns(&st, all, view)
	states := make([]custody.State, 0, len(all))
	for _, p := range slices.Backward(all) {
		verdict := view.Verdict(p)
		states = append(states, verdict.State)
		row := api.PointSummary{
			ID: p.ID, Time: p.Time.UTC(), State: string(verdict.State), Why: verdict.Why, Transfer: transfer(p),
			ChangedBytes: p.Stats.Changed, Opens: []string{}, Epochs: shortEpochs(p),
		}
		for _, ref := range refs {
			row.Opens = append(row.Opens, openText(view.Opens(p, ref)))
		}
		st.Points = append(st.Points, row)
	}
	st.State = string(custody.WorstState(states...))
	if newest, ok := catalog.Newest(all, time.Time{}); ok {
		at := newest.Time.UTC()
		st.Latest = &at
		st.Notes = append(st.Notes, notes(newest, view)...)
	}
	return st
}

func transfer(p catalog.Point) string {
	if p.FullTransfer {
		return "full"
	}
	return "incremental"
}

// columns are the secret versions that claim the machine, and those that open
// one of its recovery points although the key manager says nothing of them.
func columns(st *api.MachineStatus, points []catalog.Point, view *prove.View) []keymanager.Ref {
	var refs []keymanager.Ref
	add := func(ref keymanager.Ref, state string) {
		if !slices.Contains(refs, ref) {
			refs = append(refs, ref)
			st.Secrets, st.States = append(st.Secrets, ref.String()), append(st.States, state)
		}
	}
	secrets, err := view.Secrets()
	if err != nil {
		st.Notes = append(st.Notes, "the key manager does not answer: "+OneLine(err.Error()))
	}
	for _, i := range secrets {
		for _, v := range i.Versions {
			add(v.Ref, string(v.State))
		}
	}
	for _, p := range points {
		for _, proof := range view.Proofs(p.ID) {
			// It may be another machine's: clones share a header.
			ref := keymanager.Ref{ID: proof.Secret, Version: proof.Version}
			add(ref, cmp.Or(string(view.State(ref)), "unknown"))
		}
	}
	return refs
}

func openText(t custody.Tried) string {
	switch t {
	case custody.Opens:
		return "yes"
	case custody.Claimed:
		return "claims"
	case custody.Refused:
		return "no"
	default:
		return "untried"
	}
}

// shortEpochs are the volume-key epochs of a recovery point, enough of each to
// tell them apart by eye.
func shortEpochs(p catalog.Point) []string {
	var out []string
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			if _, digest, ok := strings.Cut(v.Epoch, ":"); ok {
				if short := digest[:min(8, len(digest))]; !slices.Contains(out, short) {
					out = append(out, short)
				}
			}
		}
	}
	return out
}

// notes are what one should know of the newest recovery point beside its state.
func notes(p catalog.Point, view *prove.View) []string {
	var out []string
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			if reason := view.NotNeeded(d.Disk, v.Volume); reason != "" {
				out = append(out, fmt.Sprintf("%s/%s is declared not needed: %s", d.Disk, v.Volume, reason))
			}
		}
	}
	if p.Incomplete {
		out = append(out, "the newest recovery point is incomplete: ranges of its disks could not be read")
	}
	return out
}
