// Package prover is the prover as a process of its own: the same program, run
// again with a hidden argument, that alone holds volume secrets while they are
// tried. Serve is the child's side, Client the parent's; they speak frames over
// the child's standard input and output, and the child asks the parent for the
// bytes of the recovery point.
//
// It decides nothing: which secrets to try, what a proof means and where it is
// stored is the parent's. Its invariant: no byte of a secret, of a volume key or
// of plaintext leaves the child, but sealed to a recovery recipient that the
// child's own configuration names.
package prover

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// ErrAbandoned ends Serve after an attempt that did not end when its time was
// up: only the end of the process stops it.
var ErrAbandoned = errors.New("attempt did not end in its time")

// Deps is what the child works with. None of it comes from the parent.
type Deps struct {
	// Manager opens the key manager, when it is first needed, and again after it failed.
	Manager func(ctx context.Context) (keymanager.Manager, error)
	Formats []diskcrypt.Format
	// Key signs proofs and packages; its role is prover.
	Key envelope.SigningKey
	// MACKey is the key of vkproof; it belongs to the installation. Empty, proofs
	// have none.
	MACKey envelope.Secret
	// Recipients are the recovery recipients that packages may be sealed to.
	Recipients func(ctx context.Context) ([]string, error)
	Limits     diskcrypt.Limits
	Timeout    time.Duration // of one attempt; 0 = custody.DefaultAttemptTimeout
	Grace      time.Duration // for an attempt to end when its time is up; 0 = 5 s
	Idle       time.Duration // opened volumes are forgotten after; 0 = 1 minute

	Software string
	Now      func() time.Time
	Log      *slog.Logger
}

// Serve answers one parent until in ends. The caller has called Harden before,
// where this is a process of its own.
func Serve(ctx context.Context, in io.Reader, out io.Writer, deps Deps) error {
	s := &server{deps: deps, in: in, out: out}
	if s.deps.Now == nil {
		s.deps.Now = time.Now
	}
	if s.deps.Log == nil {
		s.deps.Log = slog.New(slog.DiscardHandler)
	}
	s.deps.Timeout = orDuration(s.deps.Timeout, custody.DefaultAttemptTimeout)
	s.deps.Grace = orDuration(s.deps.Grace, 5*time.Second)
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return fmt.Errorf("serve prover: %w", err)
	}
	s.opened = newCache(seed, orDuration(s.deps.Idle, time.Minute))
	defer s.opened.clear()
	if err := s.send(message{Kind: kindHello, Protocol: protocolVersion, Key: string(deps.Key.ID())}, nil); err != nil {
		return fmt.Errorf("serve prover: %w", err)
	}
	for {
		m, body, err := s.receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve prover: %w", err)
		}
		inline := envelope.NewSecret(body)
		switch {
		case m.Kind == kindTry && m.Try != nil:
			m.Try.Inline = inline
			err = s.try(ctx, *m.Try)
		case m.Kind == kindPackage && m.Package != nil:
			err = s.pack(ctx, *m.Package)
		default:
			err = fmt.Errorf("%w: message %q", custody.ErrProverProtocol, printable(m.Kind))
		}
		inline.Wipe()
		if err != nil {
			return fmt.Errorf("serve prover: %w", err)
		}
	}
}

func orDuration(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

type server struct {
	deps    Deps
	manager keymanager.Manager
	opened  *cache

	pipe      sync.Mutex // one frame, or one read with its answer, at a time
	in        io.Reader
	out       io.Writer
	abandoned bool
}

func (s *server) send(m message, body []byte) error {
	s.pipe.Lock()
	defer s.pipe.Unlock()
	return writeFrame(s.out, m, body)
}

func (s *server) receive() (message, []byte, error) {
	s.pipe.Lock()
	defer s.pipe.Unlock()
	return readFrame(s.in)
}

// ask reads bytes of the recovery point from the parent.
func (s *server) ask(r readRequest, p []byte) (int, error) {
	s.pipe.Lock()
	defer s.pipe.Unlock()
	if s.abandoned {
		return 0, ErrAbandoned
	}
	r.Length = len(p)
	if err := writeFrame(s.out, message{Kind: kindRead, Read: &r}, nil); err != nil {
		return 0, err
	}
	m, body, err := readFrame(s.in)
	if err != nil {
		return 0, err
	}
	if m.Kind != kindBytes || len(body) > len(p) {
		return 0, fmt.Errorf("%w: %q with %d bytes answers a read of %d", custody.ErrProverProtocol, printable(m.Kind), len(body), len(p))
	}
	n := copy(p, body)
	switch {
	case m.Error != "":
		return n, errors.New(printable(m.Error))
	case n == len(p):
		return n, nil
	case m.End:
		return n, io.EOF
	}
	return n, io.ErrUnexpectedEOF
}

// stored is one disk, or one detached header, of the recovery point.
type stored struct {
	s            *server
	disk, volume string
	header       bool
	length       int64
}

func (r stored) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read recovery point: negative offset")
	}
	if off >= r.length {
		return 0, io.EOF
	}
	short := int64(len(p)) > r.length-off
	if short {
		p = p[:r.length-off]
	}
	done := 0
	for done < len(p) {
		part := p[done:min(len(p), done+maxRead)]
		n, err := r.s.ask(readRequest{
			Disk: r.disk, Volume: r.volume, Header: r.header,
			Offset: off + int64(done),
		}, part)
		done += n
		if err != nil && (n < len(part) || !errors.Is(err, io.EOF)) {
			return done, err
		}
	}
	if short {
		return done, io.EOF
	}
	return done, nil
}

// place is the volume within the recovery point's bytes.
func (s *server) place(disk string, v diskcrypt.Volume, headerSize int64) (diskcrypt.Place, error) {
	const maxDisk = 1 << 62
	if err := v.CheckPlace(maxDisk); err != nil || v.Size() == 0 || headerSize < 0 {
		return diskcrypt.Place{}, fmt.Errorf("%w: volume of %d bytes at %d", custody.ErrProverProtocol, v.Size(), v.Range.Offset)
	}
	data := diskcrypt.PlaceOf(stored{s: s, disk: disk, volume: v.ID, length: maxDisk}, v)
	p := diskcrypt.Place{Data: data, Size: v.Size(), Declared: v.Declared}
	if v.Detached {
		p.Header = stored{s: s, disk: disk, volume: v.ID, header: true, length: headerSize}
		p.HeadSize = headerSize
	}
	return p, nil
}

// inspect reads the header from the recovery point's own bytes and compares it
// with the one recorded.
func (s *server) inspect(ctx context.Context, p diskcrypt.Place, want diskcrypt.Volume) (diskcrypt.Format, *diskcrypt.Volume, error) {
	for _, f := range s.deps.Formats {
		v, err := f.Inspect(ctx, p)
		if errors.Is(err, diskcrypt.ErrNotThisFormat) || p.Declared != nil && v != nil && v.Declared == nil {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("inspect header: %w", err)
		}
		if v.Type != want.Type || v.HeaderDigest != want.HeaderDigest || v.HeaderDigest == "" {
			return nil, nil, errors.New("inspect header: it is not the one that was recorded for this recovery point")
		}
		return f, v, nil
	}
	return nil, nil, fmt.Errorf("inspect header: no format for volumes of type %s: %w", printable(want.Type), diskcrypt.ErrUnsupported)
}

func (s *server) try(ctx context.Context, r custody.Request) error {
	start := time.Now()
	resetPeak()
	defer s.opened.use()()
	derived := false
	defer func() {
		if derived {
			debug.FreeOSMemory() // a gigabyte of Argon2 is not kept
		}
	}()
	outcome := custody.Outcome{Volumes: make([]custody.VolumeOutcome, len(r.Volumes))}
	abandoned := false
	for i, v := range r.Volumes {
		if abandoned {
			outcome.Volumes[i].Error = "not tried: the attempt before did not end in its time"
			continue
		}
		out, proof := s.tryVolume(ctx, r, v)
		outcome.Volumes[i] = out
		derived = derived || slices.ContainsFunc(out.Attempts, func(a custody.AttemptOutcome) bool { return !a.Reused })
		s.pipe.Lock()
		abandoned = s.abandoned
		s.pipe.Unlock()
		if proof != nil {
			if err := s.send(message{Kind: kindProof, Index: i}, proof); err != nil {
				return err
			}
		}
	}
	outcome.Seconds = time.Since(start).Seconds()
	outcome.PeakRSS = peakRSS()
	if err := s.send(message{Kind: kindResult, Outcome: &outcome, Last: abandoned}, nil); err != nil {
		return err
	}
	if abandoned {
		return ErrAbandoned
	}
	return nil
}

func (s *server) tryVolume(ctx context.Context, r custody.Request, v custody.VolumeRequest) (out custody.VolumeOutcome, proof []byte) {
	fail := func(err error) (custody.VolumeOutcome, []byte) {
		out.Error = printable(err.Error())
		return out, nil
	}
	p, err := s.place(v.Disk, v.Volume, v.HeaderSize)
	if err != nil {
		return fail(err)
	}
	format, header, err := s.inspect(ctx, p, v.Volume)
	if err != nil {
		return fail(err)
	}
	a := attempt{s: s, format: format, header: header, place: p, all: r.AllProtectors}
	if r.Inline.Len() > 0 {
		got := a.run(ctx, r.InlineKind, r.Inline)
		got.Inline = true
		out.Attempts = append(out.Attempts, got.AttemptOutcome)
		if got.Tried == custody.Opens || s.isAbandoned() {
			out.Class = got.class
			return out, nil
		}
	}
	for _, c := range v.Candidates {
		got := opening{}
		secret, err := s.secret(ctx, c.Secret)
		if err != nil {
			got.Tried, got.Why = custody.Stopped, managerWords(err)
		} else {
			got = a.run(ctx, c.Kind, secret)
			secret.Wipe()
		}
		got.Secret = c.Secret
		if got.Tried == custody.Opens && r.Point != "" {
			proof, err = s.sign(r, v, header, c, got)
			if err != nil {
				got.Tried, got.Why, proof = custody.Stopped, printable(err.Error()), nil
			}
		}
		out.Attempts = append(out.Attempts, got.AttemptOutcome)
		if got.Tried == custody.Opens {
			out.Class = got.class
		}
		if got.Tried == custody.Opens || s.isAbandoned() {
			return out, proof
		}
	}
	return out, nil
}

func (s *server) isAbandoned() bool {
	s.pipe.Lock()
	defer s.pipe.Unlock()
	return s.abandoned
}

func (s *server) sign(r custody.Request, v custody.VolumeRequest, header *diskcrypt.Volume, c custody.CandidateRequest, got opening) ([]byte, error) {
	proof := custody.Proof{
		Repository: r.Repository, Machine: r.Machine, Point: r.Point,
		Disk: v.Disk, ContentRoot: v.ContentRoot,
		Volume: v.Volume.ID, Type: header.Type, UUID: header.UUID, Epoch: header.Epoch, HeaderDigest: header.HeaderDigest,
		Declared: header.Declared, Secret: c.Secret, Kind: c.Kind, KeyCheck: got.keyCheck, Class: got.class, VKProof: got.vkproof,
		Time: s.deps.Now(), Software: s.deps.Software,
	}
	for _, id := range got.Protectors {
		x := custody.ProofProtector{ID: id}
		for _, p := range header.Protectors {
			if p.ID == id {
				x.Fingerprint = p.Fingerprint
			}
		}
		proof.Protectors = append(proof.Protectors, x)
	}
	return custody.SignProof(proof, s.deps.Key)
}

// secret fetches a version from the key manager. Each proof needs it anew: what
// the manager no longer gives out is not proven.
func (s *server) secret(ctx context.Context, ref keymanager.Ref) (envelope.Secret, error) {
	if s.manager == nil {
		if s.deps.Manager == nil {
			return envelope.Secret{}, keymanager.ErrUnavailable
		}
		m, err := s.deps.Manager(ctx)
		if err != nil {
			s.deps.Log.Warn("open key manager", "error", err)
			return envelope.Secret{}, fmt.Errorf("%w: %w", keymanager.ErrUnavailable, err)
		}
		s.manager = m
	}
	secret, err := s.manager.Get(ctx, ref)
	if err != nil {
		s.deps.Log.Warn("get secret", "ref", ref.String(), "error", err)
	}
	return secret, err
}

// managerWords says in our own words why a version cannot be had.
func managerWords(err error) string {
	for _, known := range []error{
		keymanager.ErrNotFound, keymanager.ErrDestroyed, keymanager.ErrDisabled,
		keymanager.ErrSealed, keymanager.ErrDamaged, keymanager.ErrUnavailable,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return keymanager.ErrUnavailable.Error()
}

// printable makes text of others harmless for logs and terminals.
func printable(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

func (s *server) pack(ctx context.Context, r custody.PackageRequest) error {
	resetPeak()
	allowed := []string(nil)
	if s.deps.Recipients != nil {
		var err error
		if allowed, err = s.deps.Recipients(ctx); err != nil {
			return s.refuse(codeRequest, "read recovery recipients: "+printable(err.Error()))
		}
	}
	for _, to := range r.Recipients {
		if !slices.Contains(allowed, to) {
			return s.refuse(codeRequest, "seal key package: "+printable(to)+" is not a recovery recipient of this installation")
		}
	}
	var secrets []envelope.Secret
	defer func() {
		for _, x := range secrets {
			x.Wipe()
		}
	}()
	for _, e := range r.Cover.Secrets {
		x, err := s.secret(ctx, e.Secret)
		if err != nil {
			return s.refuse(codeManager, fmt.Sprintf("get secret %s: %s", printable(e.Secret.String()), managerWords(err)))
		}
		secrets = append(secrets, x)
	}
	groups := custody.RecipientGroups(r.Recipients)
	for _, group := range groups {
		c := r.Cover
		c.Format, c.Recipients, c.Time, c.Software = 1, group, s.deps.Now().UTC(), s.deps.Software
		if len(secrets) == 0 {
			break
		}
		raw, err := custody.SealKeyPackage(c, secrets, s.deps.Key)
		if err != nil {
			return s.refuse(codeRequest, printable(err.Error()))
		}
		if err := s.send(message{Kind: kindKeyPackage, KeyCover: &c}, raw); err != nil {
			return err
		}
	}
	var problems []string
	for _, h := range r.Headers {
		if err := s.packHeader(ctx, r, h, groups); err != nil {
			if errors.Is(err, errPipe) {
				return err
			}
			problems = append(problems, printable(fmt.Sprintf("header of %s/%s: %v", h.Disk, h.Volume.ID, err)))
		}
	}
	return s.send(message{Kind: kindResult, Problems: problems}, nil)
}

var errPipe = errors.New("parent does not read")

func (s *server) packHeader(ctx context.Context, r custody.PackageRequest, h custody.HeaderRequest, groups [][]string) error {
	p, err := s.place(h.Disk, h.Volume, h.HeaderSize)
	if err != nil {
		return err
	}
	_, header, err := s.inspect(ctx, p, h.Volume)
	if err != nil {
		return err
	}
	from, size := p.Data, p.Size
	if h.Volume.Detached {
		from, size = p.Header, p.HeadSize
	}
	c := custody.HeaderCover{
		Format: 1, Repository: r.Cover.Repository, Machine: r.Cover.Machine,
		HeaderDigest: header.HeaderDigest, Type: header.Type, Detached: h.Volume.Detached,
		Size: size, Ranges: h.Ranges, Time: s.deps.Now().UTC(), Software: s.deps.Software,
	}
	var sum int64
	for _, x := range h.Ranges {
		if x.Length < 0 || x.Length > custody.MaxHeader || sum+x.Length > custody.MaxHeader {
			return fmt.Errorf("%w: more than %d bytes", custody.ErrTooLarge, custody.MaxHeader)
		}
		sum += x.Length
	}
	buf := make([]byte, 0, sum)
	for _, x := range h.Ranges {
		at := len(buf)
		buf = buf[:at+int(x.Length)]
		if n, err := from.ReadAt(buf[at:], x.Offset); n < int(x.Length) {
			return fmt.Errorf("read header: %w", err)
		}
	}
	for _, group := range groups {
		c.Recipients = group
		raw, err := custody.SealHeaderPackage(c, buf, s.deps.Key)
		if err != nil {
			return err
		}
		sent := c
		if err := s.send(message{Kind: kindHeaderPackage, HeaderCover: &sent}, raw); err != nil {
			return fmt.Errorf("%w: %w", errPipe, err)
		}
	}
	return nil
}

func (s *server) refuse(code, why string) error {
	return s.send(message{Kind: kindError, Code: code, Error: why}, nil)
}
