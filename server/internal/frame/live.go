package frame

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/headers"
	"github.com/lockstep-backup/lockstep/server/internal/show"
	"github.com/lockstep-backup/lockstep/source"
)

// FoundDisk is what is on a disk as it is now.
type FoundDisk struct {
	ID     string
	Size   int64
	Report *diskcrypt.Report
}

// openLive opens a disk as it is now, and its detached header, to look at
// headers only: that it is in use does not matter for that.
func (s *Frame) openLive(ctx context.Context, def catalog.MachineDisk) (source.Disk, map[string]diskcrypt.Header, error) {
	var detached map[string]diskcrypt.Header
	if def.Header != "" {
		h, err := s.OpenSource(ctx, def.Header, source.Options{AllowLive: true})
		if err != nil {
			return nil, nil, fmt.Errorf("open its detached header: %w", err)
		}
		defer h.Close()
		if h.Size() > headers.MaxDetached {
			return nil, nil, fmt.Errorf("open its detached header: %d bytes are too many for a header: %w", h.Size(), source.ErrUnsupported)
		}
		p := make([]byte, h.Size())
		if _, err := h.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, fmt.Errorf("read its detached header: %w", err)
		}
		detached = map[string]diskcrypt.Header{diskcrypt.WholeDisk: {R: bytes.NewReader(p), Size: int64(len(p))}}
	}
	d, err := s.OpenSource(ctx, def.Source, source.Options{AllowLive: true})
	return d, detached, err
}

// Inspect looks at what is on a disk as it is now.
func (s *Frame) Inspect(ctx context.Context, def catalog.MachineDisk) (FoundDisk, error) {
	f := FoundDisk{ID: def.ID}
	d, detached, err := s.openLive(ctx, def)
	if err != nil {
		return f, err
	}
	defer d.Close()
	f.Size = d.Size()
	f.Report, err = diskcrypt.Find(ctx, d, d.Size(), diskcrypt.FindOptions{Formats: s.Formats, Detached: detached, Declared: def.Declared})
	return f, err
}

// Live looks at a machine's disks as they are now; what cannot be read says so.
func (s *Frame) Live(ctx context.Context, c *catalog.Catalog, m catalog.Machine) (views []api.DiskView, warnings []string) {
	views = []api.DiskView{}
	for _, def := range m.Disks {
		found, err := s.Inspect(ctx, def)
		if err != nil {
			views = append(views, api.DiskView{ID: def.ID, Volumes: []api.Volume{}, Error: ProblemOf(err).Detail})
			continue
		}
		views = append(views, s.LiveView(ctx, c, def.ID, found))
		warnings = append(warnings, show.Warnings(found.ID, found.Report)...)
	}
	return views, warnings
}

// LiveDisks opens a machine's disks as they are now, for a secret to be tried on.
func (s *Frame) LiveDisks(ctx context.Context, m catalog.Machine) ([]prove.LiveDisk, error) {
	var open []prove.LiveDisk
	var bad []error
	for _, def := range m.Disks {
		d, detached, err := s.openLive(ctx, def)
		if err != nil {
			bad = append(bad, fmt.Errorf("disk %s: %w", def.ID, err))
			continue
		}
		l := prove.LiveDisk{ID: def.ID, Size: d.Size(), Disk: d, Declared: def.Declared, Close: func() { _ = d.Close() }}
		if h, ok := detached[diskcrypt.WholeDisk]; ok {
			l.Header, l.HeaderSize = h.R, h.Size
		}
		open = append(open, l)
	}
	if len(open) == 0 {
		return nil, errors.Join(bad...)
	}
	for _, err := range bad {
		s.Log.Warn("a disk cannot be read now", "machine", m.Name, "error", err)
	}
	return open, nil
}

// LiveView shows a disk as it is now. Which secret opens a protector is known
// from trying it on an equal header.
func (s *Frame) LiveView(ctx context.Context, c *catalog.Catalog, id string, f FoundDisk) api.DiskView {
	v := api.DiskView{ID: id, SizeBytes: f.Size, Volumes: []api.Volume{}, Areas: show.Areas(f.Report)}
	for _, vol := range f.Report.Volumes {
		v.Volumes = append(v.Volumes, show.Volume(id, vol, s.attempted(ctx, c, vol.HeaderDigest)))
	}
	return v
}

// attempted says which secret versions opened the protectors of a header.
func (s *Frame) attempted(ctx context.Context, c *catalog.Catalog, headerDigest string) map[string][]string {
	if headerDigest == "" {
		return nil
	}
	tried, err := c.Proofs.Attempts(ctx, headerDigest)
	if err != nil {
		s.Log.Warn("attempts on a header could not be read", "error", err)
		return nil
	}
	opened := map[string][]string{}
	for _, a := range tried {
		for _, p := range a.Opened {
			opened[p] = append(opened[p], refText(a.Secret, a.Version))
		}
	}
	return opened
}

func refText(id string, version int) string { return fmt.Sprintf("%s@%d", id, version) }
