package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// memory is a disk in memory whose blocks of 4 KiB are holes while they are zeroes.
type memory struct {
	mu    sync.RWMutex
	p     []byte
	syncs int
	bad   int64 // reads that touch this byte fail, where it is not 0
	fail  error // of writing
}

const grain = 4096

func (m *memory) Size() int64 { return int64(len(m.p)) }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.bad != 0 && off <= m.bad && m.bad < off+int64(len(p)) {
		return 0, errors.New("bad range")
	}
	n := copy(p, m.p[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(m.p[off:], p), nil
}

func (m *memory) Zero(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.p[off : off+n])
	return m.fail
}

func (m *memory) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs++
	return nil
}

func (m *memory) NextData(off int64) (int64, int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	zero := func(at int) bool {
		p := m.p[at:min(at+grain, len(m.p))]
		return bytes.Count(p, []byte{0}) == len(p)
	}
	at := int(off) / grain * grain
	for at < len(m.p) && zero(at) {
		at += grain
	}
	if at >= len(m.p) || off >= m.Size() {
		return 0, 0, io.EOF
	}
	end := at
	for end < len(m.p) && !zero(end) {
		end += grain
	}
	from := max(off, int64(at))
	return from, min(int64(end), int64(len(m.p))) - from, nil
}

// patchy has noise at both ends and here and there, and holes between.
func patchy(size int) *memory {
	m := &memory{p: make([]byte, size)}
	r := mathrand.NewChaCha8([32]byte{7})
	for at := 0; at < size; at += 3 * grain {
		_, _ = r.Read(m.p[at:min(at+grain, size)])
	}
	_, _ = r.Read(m.p[size/2 : size/2+size/8])
	_, _ = r.Read(m.p[size-100:])
	clear(m.p[size/4 : size/3])
	return m
}

// serve answers on a socket of its own until the test ends.
func serve(t testing.TB, c Config) (address string) {
	t.Helper()
	if c.Log == nil && testing.Verbose() {
		c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	s, err := NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	address = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return address
}

func dial(t testing.TB, address, export string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), "unix", address, export, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func TestReadEverything(t *testing.T) {
	for _, size := range []int{1, 512, 5000, 1 << 20, 9<<20 + 777} {
		m := &memory{p: make([]byte, size)}
		if size > 4096 {
			m = patchy(size)
		}
		c := dial(t, serve(t, Config{Exports: []Export{{Name: "vda", Disk: m}}}), "")
		if c.Size() != int64(size) {
			t.Fatalf("size %d, want %d", c.Size(), size)
		}
		got := make([]byte, size+10)
		if n, err := c.ReadAt(got, 0); n != size || !errors.Is(err, io.EOF) {
			t.Errorf("size %d: read %d bytes, %v", size, n, err)
		}
		if !bytes.Equal(got[:size], m.p) {
			t.Errorf("size %d: content differs", size)
		}
		if _, err := c.ReadAt(got[:1], int64(size)); !errors.Is(err, io.EOF) {
			t.Errorf("size %d: read behind the end: %v", size, err)
		}
		if _, err := c.ReadAt(got[:1], -1); err == nil {
			t.Errorf("size %d: read before the beginning", size)
		}
	}
}

func TestConcurrentReads(t *testing.T) {
	m := patchy(8 << 20)
	c := dial(t, serve(t, Config{Exports: []Export{{Name: "a", Disk: m}, {Name: "b", Disk: &memory{p: []byte{1}}}}}), "a")
	var all sync.WaitGroup
	for g := range 24 {
		all.Go(func() {
			r := mathrand.New(mathrand.NewPCG(1, uint64(g)))
			for range 60 {
				off := r.Int64N(c.Size())
				p := make([]byte, r.Int64N(min(300<<10, c.Size()-off))+1)
				if n := min(int64(len(p)), c.Size()-off); n < int64(len(p)) {
					p = p[:n]
				}
				if _, err := c.ReadAt(p, off); err != nil {
					t.Errorf("read %d at %d: %v", len(p), off, err)
					return
				}
				if !bytes.Equal(p, m.p[off:off+int64(len(p))]) {
					t.Errorf("read %d at %d differs", len(p), off)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestNextData(t *testing.T) {
	m := patchy(3<<20 + 500)
	c := dial(t, serve(t, Config{Exports: []Export{{Name: "vda", Disk: m}}}), "vda")
	for at := int64(0); ; {
		wantAt, wantN, wantErr := m.NextData(at)
		off, n, err := c.NextData(at)
		if off != wantAt || n != wantN || !errors.Is(err, wantErr) {
			t.Fatalf("next data at %d: %d+%d %v, want %d+%d %v", at, off, n, err, wantAt, wantN, wantErr)
		}
		if err != nil {
			break
		}
		at = off + n
	}
	if off, _, err := c.NextData(10); err != nil || off != 10 { // back again, inside data
		t.Errorf("next data at 10: %d, %v", off, err)
	}
}

func TestReadErrorNamesThePlace(t *testing.T) {
	m := patchy(1 << 20)
	m.bad = 512 << 10
	c := dial(t, serve(t, Config{Exports: []Export{{Name: "vda", Disk: m}}}), "vda")
	p := make([]byte, 1<<20)
	if _, err := c.ReadAt(p, 0); !errors.Is(err, errIO) {
		t.Errorf("read over a bad range: %v", err)
	}
	if _, err := c.ReadAt(p[:4096], 0); err != nil { // the connection goes on
		t.Errorf("read elsewhere: %v", err)
	}
}

func TestUnknownExport(t *testing.T) {
	two := Config{Exports: []Export{{Name: "a", Disk: patchy(8192)}, {Name: "b", Disk: patchy(8192)}}}
	address := serve(t, two)
	for _, name := range []string{"c", ""} { // with two there is no default
		if _, err := Dial(t.Context(), "unix", address, name, nil); !errors.Is(err, ErrUnknownExport) {
			t.Errorf("dial %q: %v", name, err)
		}
	}
	if _, err := Dial(t.Context(), "unix", address, string(make([]byte, MaxName+1)), nil); !errors.Is(err, ErrUnknownExport) {
		t.Errorf("dial a long name: %v", err)
	}
	two.Exports[1].Name = "a"
	if _, err := NewServer(two); err == nil {
		t.Error("two exports of one name are taken")
	}
}

func TestClosedClient(t *testing.T) {
	c := dial(t, serve(t, Config{Exports: []Export{{Name: "a", Disk: patchy(8192)}}}), "a")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v", err)
	}
}

// raw speaks the protocol by hand.
type raw struct {
	t *testing.T
	net.Conn
}

func (r raw) put(p []byte) {
	r.t.Helper()
	if _, err := r.Write(p); err != nil {
		r.t.Fatal(err)
	}
}

func (r raw) get(n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// simple sends a request and returns the error number of a simple reply.
func (r raw) simple(q request, payload []byte) errno {
	r.t.Helper()
	var h [requestHeader]byte
	q.put(&h)
	r.put(append(h[:], payload...))
	p := r.get(simpleHeader)
	if be.Uint32(p) != magicSimple || be.Uint64(p[8:]) != q.cookie {
		r.t.Fatalf("no simple reply: %x", p)
	}
	return errno(be.Uint32(p[4:]))
}

// old begins with EXPORT_NAME, without structured replies.
func old(t *testing.T, address string) (raw, int64, uint16) {
	t.Helper()
	conn, err := net.Dial("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r := raw{t, conn}
	r.get(18)
	r.put(be.AppendUint32(nil, flagFixedNewstyle))
	r.put(append(be.AppendUint32(be.AppendUint32(be.AppendUint64(nil, magicOption), optExportName), 3), "vda"...))
	p := r.get(10 + noZeroesPaddingSize)
	return r, int64(be.Uint64(p)), be.Uint16(p[8:])
}

func TestOldClientWrites(t *testing.T) {
	m := patchy(4 << 20)
	r, size, flags := old(t, serve(t, Config{Exports: []Export{{Name: "vda", Disk: m, Writer: m}}}))
	if size != 4<<20 || flags&(transReadOnly|transDF) != 0 || flags&(transHasFlags|transTrim|transZeroes|transFUA|transMultiConn) == 0 {
		t.Fatalf("size %d, flags %#x", size, flags)
	}
	big := bytes.Repeat([]byte{0xa5}, 3<<20)
	steps := []struct {
		name    string
		q       request
		payload []byte
		want    errno
	}{
		{"write", request{kind: cmdWrite, offset: 100, length: 3}, []byte("abc"), 0},
		{"write more than a buffer", request{kind: cmdWrite, offset: 1 << 20, length: 3 << 20}, big, 0},
		{"write behind the end", request{kind: cmdWrite, offset: 4<<20 - 1, length: 2}, []byte("xy"), errNoSpace},
		{"write much behind the end", request{kind: cmdWrite, offset: 2 << 20, length: 3 << 20}, big, errNoSpace},
		{"write at an offset that overflows", request{kind: cmdWrite, offset: 1<<64 - 1, length: 2}, []byte("xy"), errNoSpace},
		{"zero", request{kind: cmdZeroes, offset: 101, length: 1}, nil, 0},
		{"trim", request{kind: cmdTrim, flags: cmdFlagFUA, offset: 1<<20 + 5, length: 1 << 20}, nil, 0},
		{"flush", request{kind: cmdFlush}, nil, 0},
		{"read behind the end", request{kind: cmdRead, offset: 4 << 20, length: 1}, nil, errInvalid},
		{"read too much", request{kind: cmdRead, length: MaxRequest + 1}, nil, errInvalid},
		{"unknown command", request{kind: 77}, nil, errInvalid},
		{"unknown flag", request{kind: cmdTrim, flags: 1 << 9, length: 1}, nil, errInvalid},
		{"block status without a context", request{kind: cmdStatus, length: 1}, nil, errInvalid},
		{"cache", request{kind: cmdCache, length: 4096}, nil, 0},
		{"read nothing", request{kind: cmdRead}, nil, 0},
	}
	for i, s := range steps {
		s.q.cookie = uint64(i)
		if got := r.simple(s.q, s.payload); got != s.want {
			t.Errorf("%s: %d, want %d", s.name, got, s.want)
		}
	}
	if m.syncs != 2 { // the flush and the FUA
		t.Errorf("%d syncs", m.syncs)
	}
	if string(m.p[100:103]) != "a\x00c" || m.p[1<<20+4] != 0xa5 || m.p[1<<20+5] != 0 || m.p[2<<20+4] != 0 || m.p[2<<20+5] != 0xa5 {
		t.Error("content is not what was written")
	}
	for _, n := range []uint32{5, 100 << 10, 3 << 20} { // below a buffer, a big one, twice through
		if e := r.simple(request{kind: cmdRead, cookie: 9, offset: 1 << 20, length: n}, nil); e != 0 {
			t.Fatalf("read %d: %d", n, e)
		}
		if !bytes.Equal(r.get(int(n)), m.p[1<<20:1<<20+int(n)]) {
			t.Errorf("read %d differs", n)
		}
	}
	m.fail = syscall.ENOSPC
	if e := r.simple(request{kind: cmdWrite, length: 1}, []byte{1}); e != errNoSpace {
		t.Errorf("write to a full disk: %d", e)
	}
	if e := r.simple(request{kind: cmdWrite, length: 3 << 20}, big); e != errNoSpace {
		t.Errorf("large write to a full disk: %d", e)
	}
	m.bad = 3 << 20
	if e := r.simple(request{kind: cmdRead, offset: 1, length: 4<<20 - 1}, nil); e != errIO {
		t.Errorf("large read over a bad range: %d", e)
	}
}

func TestReadOnly(t *testing.T) {
	m := patchy(1 << 20)
	r, _, flags := old(t, serve(t, Config{Exports: []Export{{Name: "vda", Disk: m}}}))
	if flags&transReadOnly == 0 {
		t.Errorf("flags %#x", flags)
	}
	before := bytes.Clone(m.p)
	for _, q := range []request{{kind: cmdWrite, length: 4}, {kind: cmdZeroes, length: 4}, {kind: cmdTrim, length: 4}} {
		var payload []byte
		if q.kind == cmdWrite {
			payload = []byte("evil")
		}
		if e := r.simple(q, payload); e != errPerm {
			t.Errorf("command %d: %d", q.kind, e)
		}
	}
	if e := r.simple(request{kind: cmdFlush}, nil); e != 0 {
		t.Errorf("flush: %d", e)
	}
	if !bytes.Equal(before, m.p) {
		t.Error("content changed")
	}
}

// Metadata contexts chosen for one export must not count for another.
func TestContextOfAnotherExport(t *testing.T) {
	a, b := Export{Name: "a", Disk: patchy(8192)}, Export{Name: "b", Disk: patchy(8192)}
	s, err := NewServer(Config{Exports: []Export{a, b}})
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	defer here.Close()
	go func() { _ = s.ServeConn(context.Background(), there) }()
	r := raw{t, here}
	r.get(18)
	r.put(be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
	if err := simpleOption(here, optSetMetaContext, metaRequest{"a", []string{allocation}}.bytes()); !errors.Is(err, errRefused) {
		t.Errorf("contexts without structured replies: %v", err)
	}
	for _, opt := range []struct {
		n    uint32
		data []byte
	}{
		{optStructuredReply, nil},
		{optSetMetaContext, metaRequest{"a", []string{allocation, "qemu:none"}}.bytes()},
		{optGo, infoRequest{"b", nil}.bytes()},
	} {
		if err := simpleOption(here, opt.n, opt.data); err != nil {
			t.Fatalf("option %d: %v", opt.n, err)
		}
	}
	var h [requestHeader]byte
	request{kind: cmdStatus, length: 4096}.put(&h)
	r.put(h[:])
	if p := r.get(structuredHeader); be.Uint16(p[6:]) != chunkError {
		t.Errorf("block status is answered: %x", p)
	}
}

// certificates makes an authority and certificates in QEMU's layout.
func certificates(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, who := range []string{"ca", "server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: who},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: who == "ca", BasicConstraintsValid: true,
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		if who != "ca" {
			c.KeyUsage = x509.KeyUsageDigitalSignature
		} else {
			ca, caKey, c.ExtKeyUsage = c, key, nil
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		write(who+"-cert.pem", "CERTIFICATE", der)
		if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			t.Fatal(err)
		}
		write(who+"-key.pem", "PRIVATE KEY", der)
	}
	return dir
}

func TestEncrypted(t *testing.T) {
	dir := certificates(t)
	config, known, err := ServerTLS(dir)
	if err != nil || !known {
		t.Fatal(known, err)
	}
	m := patchy(3 << 20)
	address := serve(t, Config{Exports: []Export{{Name: "vda", Disk: m}}, TLS: config})
	mine, err := ClientTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	mine.ServerName = "localhost"
	c, err := Dial(t.Context(), "unix", address, "vda", mine)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.p) {
		t.Errorf("content differs, %v", err)
	}
	if _, err := Dial(t.Context(), "unix", address, "vda", nil); !errors.Is(err, ErrTLSRequired) {
		t.Errorf("without encryption: %v", err)
	}
	stranger := mine.Clone()
	stranger.Certificates = nil
	if c, err := Dial(t.Context(), "unix", address, "vda", stranger); err == nil {
		t.Error("a client without a certificate is served")
		_ = c.Close()
	}
	plain := serve(t, Config{Exports: []Export{{Name: "vda", Disk: m}}})
	if _, err := Dial(t.Context(), "unix", plain, "vda", mine); !errors.Is(err, ErrNoTLS) {
		t.Errorf("a server without encryption: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, fileCA)); err != nil {
		t.Fatal(err)
	}
	if config, known, err := ServerTLS(dir); err != nil || known || config.ClientAuth != tls.NoClientCert {
		t.Errorf("without an authority: %v, %v", known, err)
	}
	if _, err := ClientTLS(dir); err == nil {
		t.Error("a client trusts without an authority")
	}
}

// Whoever is connected when the server ends gets answers to what was asked.
func TestEndWithClients(t *testing.T) {
	s, err := NewServer(Config{Exports: []Export{{Name: "a", Disk: patchy(1 << 20)}}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	c, err := Dial(t.Context(), "unix", l.Addr().String(), "a", nil)
	if err != nil {
		t.Fatal(err)
	}
	idle, err := net.Dial("unix", l.Addr().String()) // in the middle of the handshake
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if _, err := c.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := c.ReadAt(make([]byte, 4096), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("read from a server that ended: %v", err)
	}
	_ = c.Close()
}
