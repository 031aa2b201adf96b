package unlock

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// open opens the volume that device i is, and adds the plaintext, or says why
// it stays locked. The error is the context's.
func (w *walker) open(i int, v diskcrypt.Volume, known bool) error {
	d := *w.at(i)
	v.ID = d.Name // as its place in the tree, also in a volume inside of another
	p, err := w.tryPlaces(d, v, known)
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if err != nil {
		w.tree.Locked = append(w.tree.Locked, Locked{Disk: d.Disk, Name: d.Name, Volume: v, Why: err})
		return nil
	}
	w.tree.opened = append(w.tree.opened, p.vol)
	w.add(Device{
		Disk: d.Disk, Name: d.Name, Kind: v.Type, Parents: []int{i}, Decrypted: true,
		Key: p.key, Protector: p.vol.Protector(), Header: p.from, R: p.vol, Size: p.vol.Size(),
	}, true)
	return nil
}

// opened is a volume that was opened, and by what.
type opened struct {
	vol       diskcrypt.Opened
	key, from string
}

// tryPlaces takes the first header that is right.
func (w *walker) tryPlaces(d Device, v diskcrypt.Volume, known bool) (opened, error) {
	if len(w.tree.opened) == maxOpened {
		return opened{}, fmt.Errorf("%d volumes are open: %w", maxOpened, diskcrypt.ErrLimit)
	}
	var failed []error
	try := func(from string, p diskcrypt.Place) (opened, bool, error) {
		f, err := w.formatOf(p, v)
		if err != nil {
			if from != "" {
				err = fmt.Errorf("%s: %w", from, err)
			}
			failed = append(failed, err)
			return opened{}, false, nil
		}
		out, err := w.tryKeys(d, v, f, p)
		out.from = from
		return out, true, err
	}
	if !v.Detached {
		if out, ok, err := try("", diskcrypt.Place{Data: d.R, Size: d.Size, Declared: v.Declared}); ok {
			return out, err
		}
	}
	var stored []Header
	if known && !d.Decrypted {
		stored = w.stored(d)
	}
	for _, h := range stored {
		p := diskcrypt.Place{Data: d.R, Size: d.Size, Declared: v.Declared}
		if v.Detached {
			p.Header, p.HeadSize = h.R, h.Size
		} else {
			p.Data = disk.Overlay{Below: d.R, Ranges: h.Ranges, Top: h.R}
		}
		if out, ok, err := try(h.From, p); ok {
			return out, err
		}
	}
	if v.Detached && len(stored) == 0 {
		return opened{}, fmt.Errorf("%w: its header is not on the disk, and no copy of it was stored", ErrNoHeader)
	}
	return opened{}, errors.Join(failed...)
}

// formatOf finds the format that reads a header, which must be the one that v
// was found by.
func (w *walker) formatOf(p diskcrypt.Place, v diskcrypt.Volume) (diskcrypt.Format, error) {
	for _, f := range w.o.Formats {
		got, err := f.Inspect(w.ctx, p)
		switch {
		case errors.Is(err, diskcrypt.ErrNotThisFormat):
			continue
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrNoHeader, err)
		case v.HeaderDigest != "" && got.HeaderDigest != v.HeaderDigest:
			return nil, fmt.Errorf("%w: %w: it is not the one that was found at the backup", ErrNoHeader, diskcrypt.ErrDamaged)
		}
		return f, nil
	}
	why := v.Unsupported
	if v.HeaderDigest != "" {
		return nil, fmt.Errorf("%w: there is none any more", ErrNoHeader)
	}
	if why == "" {
		why = v.Type
	}
	return nil, fmt.Errorf("%w: %s", diskcrypt.ErrUnsupported, why)
}

// tryKeys takes the first key that opens.
func (w *walker) tryKeys(d Device, v diskcrypt.Volume, f diskcrypt.Format, p diskcrypt.Place) (opened, error) {
	var wrong []string
	var failed []error
	try := func(k Key) (opened, bool) {
		vol, err := f.Open(w.ctx, p, k.Kind, k.Secret, w.o.Limits)
		switch {
		case err == nil:
			return opened{vol: vol, key: k.Name}, true
		case errors.Is(err, diskcrypt.ErrWrongSecret):
			wrong = append(wrong, k.Name)
		case k.Name != "":
			failed = append(failed, fmt.Errorf("secret %s: %w", k.Name, err))
		default:
			failed = append(failed, err)
		}
		return opened{}, false
	}
	if v.SelfOpening != "" {
		// A null cipher wants an empty passphrase, a clear key nothing at all. What
		// comes of them is not told: nobody gave them.
		for _, kind := range []diskcrypt.Kind{diskcrypt.KindNone, diskcrypt.KindPassphrase} {
			if out, ok := try(Key{Kind: kind, Secret: envelope.NewSecret(nil)}); ok {
				return out, nil
			}
		}
		wrong, failed = nil, nil
	}
	for k, err := range w.keys(w.ctx, d.Disk, v) {
		if err != nil {
			failed = append(failed, err)
			continue
		}
		out, ok := try(k)
		k.Secret.Wipe()
		if ok {
			return out, nil
		}
		if w.ctx.Err() != nil {
			return opened{}, w.ctx.Err()
		}
	}
	switch {
	case len(wrong) > 0 && strings.Join(wrong, "") != "":
		failed = append(failed, fmt.Errorf("%w: %s", diskcrypt.ErrWrongSecret, strings.Join(wrong, ", ")))
	case len(wrong) > 0:
		failed = append(failed, diskcrypt.ErrWrongSecret)
	case len(failed) == 0:
		failed = append(failed, ErrNoKey)
	}
	return opened{}, errors.Join(failed...)
}

// part is a range of a device.
func part(d Device, r disk.Range) io.ReaderAt { return io.NewSectionReader(d.R, r.Offset, r.Length) }
