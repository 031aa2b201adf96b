package veracrypt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/opened"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/envelope"
)

// notTried is said where a secret opens nothing: a volume by one of these looks
// just like one by another secret.
const notTried = "Streebog, Camellia and Kuznyechik, and TrueCrypt 4 and before (LRW, CBC) are not tried"

// Open tries the secret on the headers, those at the start first.
func (Format) Open(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) (diskcrypt.Opened, error) {
	found, err := search(ctx, p, kind, secret, lim, false)
	if err != nil {
		return nil, fmt.Errorf("open veracrypt volume: %w", err)
	}
	defer found[0].wipe()
	o, err := found[0].open(p)
	if err != nil {
		return nil, fmt.Errorf("open veracrypt volume: %w", err)
	}
	return o, nil
}

// OpensAll tries the secret on every header.
func (Format) OpensAll(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) ([]string, error) {
	found, err := search(ctx, p, kind, secret, lim, true)
	var ids []string
	for _, m := range found {
		ids = append(ids, m.place.id)
		m.wipe()
	}
	if err != nil {
		return ids, fmt.Errorf("open veracrypt volume: %w", err)
	}
	return ids, nil
}

// match is a header that the secret opened.
type match struct {
	place  place
	header header
	plain  []byte // the decrypted header
	chain  chain
	kdf    kdf
}

func (m *match) wipe() { envelope.Wipe(m.plain) }

// attempt is one key derivation on one header.
type attempt struct {
	place place
	raw   []byte
	kdf   kdf
}

// search runs the key derivations side by side. Without all it ends with the
// first header, in the order of the places, that opens.
func search(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, given envelope.Secret, lim diskcrypt.Limits, all bool) ([]*match, error) {
	if !p.DeclaredAs(diskcrypt.TypeVeraCrypt) {
		return nil, diskcrypt.ErrNotThisFormat
	}
	d, err := understand(p.Declared)
	if err != nil {
		return nil, err
	}
	if why := d.unsupported(); why != "" {
		return nil, fmt.Errorf("%w: %s", diskcrypt.ErrUnsupported, why)
	}
	places := headerPlaces(p.Size, d.system)
	if len(places) == 0 {
		return nil, diskcrypt.ErrNotThisFormat
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := secretOf(kind, given)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", diskcrypt.ErrWrongSecret, err)
	}
	defer s.Wipe()
	password := s.mixed()
	defer envelope.Wipe(password)

	var found []*match
	var passed error // some were passed over
	m := newMeter(lim)
	// What costs nothing first, and the first header before the others: the right
	// password costs one of them.
	for _, stage := range []struct {
		places []place
		magic  []byte
	}{{places, magicTrue}, {places[:1], magicVera}, {places[1:], magicVera}} {
		stageFound, skipped, err := try(ctx, p, kdfsOf(d.hash, d.system, stage.magic), d, s, password, stage.places, m)
		if err != nil {
			for _, f := range found {
				f.wipe()
			}
			return nil, err
		}
		passed = errors.Join(passed, skipped)
		found = append(found, stageFound...)
		if len(found) > 0 && !all {
			for _, f := range found[1:] {
				f.wipe()
			}
			return found[:1], nil
		}
	}
	slices.SortStableFunc(found, func(a, b *match) int { return a.place.order - b.place.order })
	switch {
	case passed != nil:
		return found, passed
	case len(found) == 0:
		return nil, fmt.Errorf("%w; %s", diskcrypt.ErrWrongSecret, notTried)
	}
	return found, nil
}

// try runs all key derivations on some places. skipped says what the limits
// left out.
func try(ctx context.Context, p diskcrypt.Place, kdfs []kdf, d declared, s Secret, password []byte, places []place, m *meter) (found []*match, skipped, err error) {
	var work []attempt
	for _, pl := range places {
		if s.Hidden && !pl.hidden {
			continue
		}
		raw := make([]byte, headerSize)
		if _, err := io.ReadFull(io.NewSectionReader(p.Data, pl.offset, headerSize), raw); err != nil {
			skipped = errors.Join(skipped, fmt.Errorf("read %s header: %w", pl.id, err))
			continue
		}
		for _, k := range kdfs {
			if old := slices.Equal(k.magic, magicTrue); !k.usable(s.PIM) || old && len(password) > oldPassword || !old && pl.old {
				continue
			}
			if err := m.pay(k, s.PIM); err != nil {
				skipped = errors.Join(skipped, err)
				continue
			}
			work = append(work, attempt{pl, raw, k})
		}
	}
	results := make([]*match, len(work))
	errs := make([]error, len(work))
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var big sync.Mutex // one Argon2 at a time: memory
	opens := map[string]bool{}
	var mu sync.Mutex
	for i, a := range work {
		slots <- struct{}{}
		mu.Lock()
		done := opens[a.place.id]
		mu.Unlock()
		if done { // a header is encrypted in one way
			<-slots
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if a.kdf.hash == nil {
				big.Lock()
				defer big.Unlock()
			}
			results[i], errs[i] = a.run(ctx, d, s.PIM, password)
			if results[i] != nil {
				mu.Lock()
				opens[a.place.id] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for i, r := range results {
		if errs[i] != nil {
			err = errs[i]
		}
		if r != nil {
			found = append(found, r)
		}
	}
	if err != nil {
		for _, f := range found {
			f.wipe()
		}
		return nil, nil, err
	}
	return found, skipped, nil
}

// run derives a header key and tries it with every chain; nil where it opens nothing.
func (a attempt) run(ctx context.Context, d declared, pim uint64, password []byte) (*match, error) {
	key := derived{k: a.kdf, password: password, salt: a.raw[:saltSize], pim: pim}
	defer func() { envelope.Wipe(key.key[:cap(key.key)]) }()
	ordered := slices.Clone(chainsOf(d.cipher))
	slices.SortStableFunc(ordered, func(a, b chain) int { return a.keyBytes() - b.keyBytes() })
	for _, c := range ordered {
		if err := key.extend(ctx, c.keyBytes()); err != nil {
			return nil, err
		}
		ciphers, err := newCascade(c, key.key)
		if err != nil {
			return nil, err
		}
		plain := slices.Clone(a.raw[fieldsAt:])
		ciphers.decrypt(plain, len(plain), 0)
		ciphers.wipe()
		if h, ok := decode(plain, a.kdf.magic); ok {
			return &match{place: a.place, header: h, plain: plain, chain: c, kdf: a.kdf}, nil
		}
		envelope.Wipe(plain)
	}
	return nil, nil
}

// open makes the volume that the header describes.
func (m *match) open(p diskcrypt.Place) (*opened.Volume, error) {
	runs, size, err := m.layout(p.Size)
	if err != nil {
		return nil, err
	}
	key := slices.Clone(m.header.keys[:m.chain.keyBytes()])
	ciphers, err := newCascade(m.chain, key)
	if err != nil {
		envelope.Wipe(key)
		return nil, err
	}
	for i := range runs {
		if runs[i].Kind == plainview.Crypt {
			runs[i].Cipher = ciphers
		}
	}
	return &opened.Volume{
		Format: "veracrypt", View: plainview.New(p.Data, size, runs), ID: m.place.id, Key: key, Wipe: ciphers.wipe,
		Check: fmt.Sprintf("veracrypt-crc-%s-%s", m.kdf.name, m.chain.name),
	}, nil
}

// layout is where the plaintext lies in a place of size bytes.
func (m *match) layout(size int64) (runs plainview.Runs, length int64, err error) {
	h := m.header
	from, n := h.dataOffset, h.volumeSize
	if n == 0 {
		n = h.dataSize
	}
	if m.place.hidden && h.hiddenSize > 0 {
		n = h.hiddenSize
	}
	switch {
	case m.place.id == "system":
		return m.systemLayout(size)
	case m.place.hidden && h.version <= 3:
		if n > uint64(size) || uint64(size)-n < -oldHiddenAt {
			return nil, 0, fmt.Errorf("%w: hidden volume of %d bytes on %d", diskcrypt.ErrDamaged, n, size)
		}
		from = uint64(size) - n - uint64(-oldHiddenAt)
	case h.version <= 3 && from == 0:
		from = headerSize
	}
	if n == 0 && from < uint64(size) {
		n = uint64(size) - from
	}
	switch {
	case h.flags&flagInPlace != 0 && h.dataSize < h.volumeSize:
		return nil, 0, fmt.Errorf("%w: encryption in place is in progress: %d of %d bytes are encrypted", diskcrypt.ErrUnsupported, h.dataSize, h.volumeSize)
	case from%disk.SectorSize != 0 || n%disk.SectorSize != 0 || n == 0 || from >= uint64(size) || n > math.MaxInt64:
		return nil, 0, fmt.Errorf("%w: data of %d bytes at %d of a volume of %d", diskcrypt.ErrDamaged, n, from, size)
	}
	// What the end of the disk cuts off is missing; the rest is as good as ever.
	length = min(int64(n), (size-int64(from))/disk.SectorSize*disk.SectorSize)
	if length == 0 {
		return nil, 0, fmt.Errorf("%w: no data behind %d of %d bytes", diskcrypt.ErrDamaged, from, size)
	}
	return plainview.Runs{{Length: length, Kind: plainview.Crypt, From: int64(from), Unit: from / disk.SectorSize}}, length, nil
}

// systemLayout is the whole disk, the encrypted part decrypted.
func (m *match) systemLayout(size int64) (plainview.Runs, int64, error) {
	from, n := m.header.dataOffset, m.header.dataSize
	if from%disk.SectorSize != 0 || n%disk.SectorSize != 0 || n == 0 || from >= uint64(size) {
		return nil, 0, fmt.Errorf("%w: encrypted area of %d bytes at %d of a disk of %d", diskcrypt.ErrDamaged, n, from, size)
	}
	length := min(int64(min(n, math.MaxInt64)), (size-int64(from))/disk.SectorSize*disk.SectorSize)
	runs := plainview.Runs{{Offset: int64(from), Length: length, Kind: plainview.Crypt, From: int64(from), Unit: from / disk.SectorSize}}
	if from > 0 {
		runs = slices.Insert(runs, 0, plainview.Run{Length: int64(from), Kind: plainview.Plain})
	}
	if end := int64(from) + length; end < size {
		runs = append(runs, plainview.Run{Offset: end, Length: size - end, Kind: plainview.Plain, From: end})
	}
	return runs, size, nil
}
