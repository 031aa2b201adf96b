package bitlocker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/bitlockerformat"
	"github.com/lockstep-backup/lockstep/diskcrypt/diskcrypttest"
	"github.com/lockstep-backup/lockstep/envelope"
)

// memory is an image.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

func (m memory) place() diskcrypt.Place {
	return diskcrypt.Place{Data: bytes.NewReader(m), Size: int64(len(m))}
}

const size = 2 << 20

func content(sectorSize int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(b)
	copy(b, bitlockerformat.BootSector(size, sectorSize))
	return b
}

func format(t testing.TB, o bitlockerformat.Options) (memory, *bitlockerformat.Volume) {
	t.Helper()
	m := make(memory, size)
	v, err := bitlockerformat.Format(context.Background(), m, content(max(512, o.SectorSize)), o)
	if err != nil {
		t.Fatal(err)
	}
	return m, v
}

const password = "a password, pässword 💾"

// protectors are one of each kind; the startup key costs nothing to try.
func protectors() []bitlockerformat.Protector {
	return []bitlockerformat.Protector{
		{Kind: bitlockerformat.TPM},
		{Kind: bitlockerformat.StartupKey, Name: "ExternalKey"},
		{Kind: bitlockerformat.Password, Secret: []byte(password)},
		{Kind: bitlockerformat.Recovery},
	}
}

// TestConformance runs the suite of diskcrypttest on volumes of our own making.
func TestConformance(t *testing.T) {
	var volumes []diskcrypttest.Volume
	for _, c := range []struct {
		name string
		o    bitlockerformat.Options
	}{
		{"xts 256", bitlockerformat.Options{Method: "aes-xts-256", Protectors: protectors()}},
		{"elephant", bitlockerformat.Options{Method: "aes-cbc-elephant-128", Protectors: protectors()[:2]}},
		{"cbc 4096", bitlockerformat.Options{Method: "aes-cbc-256", SectorSize: 4096, Protectors: protectors()[:2]}},
		{"to go", bitlockerformat.Options{Flavour: bitlockerformat.ToGo, Protectors: protectors()[:2]}},
		{"paused", bitlockerformat.Options{State: 3, Next: 1, Watermark: 1 << 20, Protectors: protectors()[:2]}},
		{"used space only", bitlockerformat.Options{Chunks: everySecond(size >> 16), ChunkSize: 64 << 10, Protectors: protectors()[:2]}},
	} {
		m, v := format(t, c.o)
		key := v.Protectors[1]
		volume := diskcrypttest.Volume{
			Name: c.name, Place: m.place(), Type: diskcrypt.TypeBitLocker, Plain: v.Plain,
			Secrets: []diskcrypttest.Secret{
				{Kind: diskcrypt.KindStartupKey, Bytes: key.Secret, Protectors: []string{key.GUID}},
			},
			Wrong: diskcrypttest.Secret{Kind: diskcrypt.KindStartupKey, Bytes: bytes.Repeat([]byte{1}, 156)},
		}
		if len(c.o.Protectors) > 2 {
			volume.Secrets = append(volume.Secrets,
				diskcrypttest.Secret{Kind: diskcrypt.KindPassphrase, Bytes: []byte(password), Protectors: []string{v.Protectors[2].GUID}},
				diskcrypttest.Secret{Kind: diskcrypt.KindRecoveryPassword, Bytes: v.Protectors[3].Secret, Protectors: []string{v.Protectors[3].GUID}},
				diskcrypttest.Secret{Kind: diskcrypt.KindVolumeKey, Bytes: v.FVEK, Protectors: []string{"volume-key"}},
			)
		}
		volumes = append(volumes, volume)
	}
	diskcrypttest.Run(t, bitlocker.Format{}, volumes)
}

func everySecond(n int) []bool {
	out := make([]bool, n)
	for i := range out {
		out[i] = i%2 == 0
	}
	return out
}

func opens(t *testing.T, m memory, kind diskcrypt.Kind, secret []byte, want []byte) diskcrypt.Opened {
	t.Helper()
	o, err := bitlocker.Format{}.Open(ctx, m.place(), kind, envelope.CopySecret(secret), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	got := make([]byte, o.Size())
	if n, err := o.ReadAt(got, 0); n != len(got) {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		at := 0
		for got[at] == want[at] {
			at++
		}
		t.Fatalf("not the plaintext at %#x", at)
	}
	return o
}

// TestWholeKeys: the VMK and the FVEK themselves open, and no others do.
func TestWholeKeys(t *testing.T) {
	for _, method := range bitlockerformat.Methods {
		m, v := format(t, bitlockerformat.Options{Method: method, Protectors: protectors()[:1]})
		byVMK := opens(t, m, diskcrypt.KindVolumeMasterKey, v.VMK, v.Plain)
		byFVEK := opens(t, m, diskcrypt.KindVolumeKey, v.FVEK, v.Plain)
		if byVMK.Protector() != "volume-master-key" || byFVEK.Protector() != "volume-key" || byFVEK.KeyCheck() != "bitlocker-boot-sector" ||
			!bytes.Equal(byVMK.KeyMAC([]byte("k")), byFVEK.KeyMAC([]byte("k"))) {
			t.Errorf("%s: %s %s", method, byVMK.Protector(), byFVEK.Protector())
		}
		for _, n := range []int{0, 16, 31, 32, 64} {
			for _, kind := range []diskcrypt.Kind{diskcrypt.KindVolumeMasterKey, diskcrypt.KindVolumeKey} {
				if _, err := (bitlocker.Format{}).Open(ctx, m.place(), kind, envelope.NewSecret(make([]byte, n)), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrWrongSecret) {
					t.Errorf("%s: %s of %d zeroes: %v", method, kind, n, err)
				}
			}
		}
	}
}

// TestProtectorsOffMachine: they are named, and a volume with nothing else is warned of.
func TestProtectorsOffMachine(t *testing.T) {
	m, _ := format(t, bitlockerformat.Options{Label: "HOST C: 1/2/2026", Protectors: []bitlockerformat.Protector{
		{Kind: bitlockerformat.TPM},
		{Kind: bitlockerformat.TPMAndPIN},
		{Kind: bitlockerformat.SmartCard, Name: "card"},
		{Kind: bitlockerformat.NetworkLock},
		{Kind: bitlockerformat.Unknown},
	}})
	v, err := bitlocker.Format{}.Inspect(ctx, m.place())
	if err != nil || v.Label != "HOST C: 1/2/2026" || v.SelfOpening != "" || v.Unsupported != "" {
		t.Fatalf("%+v %v", v, err)
	}
	var kinds []string
	for _, p := range v.Protectors {
		kinds = append(kinds, p.Kind)
		if p.Offline || p.Note == "" || p.Created.Format("2006-01-02") != "2019-07-04" {
			t.Errorf("%+v", p)
		}
	}
	if want := "tpm tpm-pin smart-card network-unlock other"; strings.Join(kinds, " ") != want {
		t.Errorf("%s, want %s", kinds, want)
	}
	if !strings.Contains(strings.Join(v.Warnings, "\n"), "no portable protector") {
		t.Errorf("%q", v.Warnings)
	}
	// One that is portable ends the warning.
	m, _ = format(t, bitlockerformat.Options{Protectors: protectors()[:2]})
	if v, err = (bitlocker.Format{}).Inspect(ctx, m.place()); err != nil || len(v.Warnings) > 0 {
		t.Errorf("%q %v", v.Warnings, err)
	}
}

func TestClearKey(t *testing.T) {
	m, v := format(t, bitlockerformat.Options{Protectors: []bitlockerformat.Protector{{Kind: bitlockerformat.TPM}, {Kind: bitlockerformat.ClearKey}}})
	d, err := bitlocker.Format{}.Inspect(ctx, m.place())
	if err != nil || !strings.Contains(d.SelfOpening, "clear key") {
		t.Fatalf("%+v %v", d, err)
	}
	if o := opens(t, m, diskcrypt.KindNone, nil, v.Plain); o.Protector() != v.Protectors[1].GUID {
		t.Error(o.Protector())
	}
	// With a secret it would prove that secret, whatever it is.
	for _, kind := range []diskcrypt.Kind{diskcrypt.KindNone, diskcrypt.KindPassphrase} {
		if _, err := (bitlocker.Format{}).Open(ctx, m.place(), kind, pass("anything"), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrWrongSecret) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// TestDerive: any working secret gives the portable secrets of the others, byte for byte.
func TestDerive(t *testing.T) {
	m, v := format(t, bitlockerformat.Options{Protectors: append(protectors(), bitlockerformat.Protector{Kind: bitlockerformat.Recovery})})
	for _, c := range []struct {
		kind   diskcrypt.Kind
		secret []byte
	}{
		{diskcrypt.KindStartupKey, v.Protectors[1].Secret},
		{diskcrypt.KindVolumeMasterKey, v.VMK},
		{diskcrypt.KindPassphrase, []byte(password)},
	} {
		got, err := bitlocker.Derive(ctx, m.place(), c.kind, envelope.CopySecret(c.secret), diskcrypt.Limits{})
		if err != nil || len(got) != 3 {
			t.Fatalf("%s: %d, %v", c.kind, len(got), err)
		}
		for _, d := range got {
			i := slices.IndexFunc(v.Protectors, func(p bitlockerformat.Protector) bool { return p.GUID == d.Protector })
			if p := v.Protectors[i]; string(d.Kind) != p.Kind || !bytes.Equal(d.Secret.Expose(), p.Secret) {
				t.Errorf("%s: %s of %s is not its secret", c.kind, d.Kind, d.Protector)
			}
		}
	}
	if _, err := bitlocker.Derive(ctx, m.place(), diskcrypt.KindVolumeKey, envelope.CopySecret(v.FVEK), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrUnsupported) {
		t.Errorf("from a volume key: %v", err)
	}
	if got, err := bitlocker.Derive(ctx, m.place(), diskcrypt.KindVolumeMasterKey, envelope.NewSecret(make([]byte, 32)), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrWrongSecret) || len(got) > 0 {
		t.Errorf("from a wrong key: %v", err)
	}
}

// TestMistyped: the first wrong group is named, and no digits are.
func TestMistyped(t *testing.T) {
	m, v := format(t, bitlockerformat.Options{Protectors: protectors()[3:]})
	right := string(v.Protectors[0].Secret)
	groups := strings.Split(right, "-")
	bad := func(i int, g string) string {
		out := slices.Clone(groups)
		out[i] = g
		return strings.Join(out, "-")
	}
	digit := func(g string) string { return g[:5] + string('0'+(g[5]-'0'+1)%10) }
	for _, c := range []struct {
		typed string
		group int
	}{
		{bad(0, digit(groups[0])), 1},
		{bad(4, digit(groups[4])), 5},
		{bad(7, digit(groups[7])), 8},
		{bad(2, "720896"), 3},
		{bad(2, "12345"), 3},
		{bad(5, "12a456"), 6},
		{strings.Join(groups[:7], "-"), 0},
		{right + "-000011", 0},
		{"", 0},
	} {
		_, err := bitlocker.Format{}.Open(ctx, m.place(), diskcrypt.KindRecoveryPassword, pass(c.typed), diskcrypt.Limits{})
		var mistyped *bitlocker.MistypedError
		if !errors.Is(err, diskcrypt.ErrWrongSecret) || !errors.As(err, &mistyped) || mistyped.Group != c.group {
			t.Errorf("%q: %v", c.typed, err)
		}
		for _, g := range groups {
			if strings.Contains(fmt.Sprint(err), g) {
				t.Errorf("the error holds digits: %v", err)
			}
		}
	}
	for _, typed := range []string{strings.ReplaceAll(right, "-", ""), strings.ReplaceAll(right, "-", " "), " " + right + " "} {
		if ids, err := (bitlocker.Format{}).OpensAll(ctx, m.place(), diskcrypt.KindRecoveryPassword, pass(typed), diskcrypt.Limits{}); err != nil || len(ids) != 1 {
			t.Errorf("%v %v", ids, err)
		}
	}
}

// TestStates: what is ciphertext follows from the state.
func TestStates(t *testing.T) {
	for _, c := range []struct {
		name       string
		o          bitlockerformat.Options
		conversion string
	}{
		{"encrypting", bitlockerformat.Options{State: 5, Next: 4, Watermark: 1 << 20}, "encryption in progress, 50 %"},
		{"paused", bitlockerformat.Options{State: 3, Next: 4, Watermark: 3 << 19}, "encryption paused, 75 %"},
		{"decrypting", bitlockerformat.Options{State: 3, Next: 1, Watermark: 1 << 19, SectorSize: 4096}, "decryption paused, 25 %"},
		{"used space only", bitlockerformat.Options{Chunks: append(make([]bool, 31), true), ChunkSize: 64 << 10}, "used-space-only conversion: 3 %"},
		{"all chunks", bitlockerformat.Options{Chunks: slices.Repeat([]bool{true}, 32), ChunkSize: 64 << 10}, ""},
		{"vista", bitlockerformat.Options{Flavour: bitlockerformat.Vista, Method: "aes-cbc-elephant-256"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Protectors = protectors()[:2]
			m, v := format(t, c.o)
			d, err := bitlocker.Format{}.Inspect(ctx, m.place())
			if err != nil || !strings.HasPrefix(d.Conversion, c.conversion) || (d.Conversion == "") != (c.conversion == "") {
				t.Fatalf("%q %v", d.Conversion, err)
			}
			opens(t, m, diskcrypt.KindStartupKey, v.Protectors[1].Secret, v.Plain)
		})
	}
	t.Run("decrypted", func(t *testing.T) {
		m, v := format(t, bitlockerformat.Options{State: 1, Next: 1})
		d, err := bitlocker.Format{}.Inspect(ctx, m.place())
		if err != nil || !strings.HasPrefix(d.SelfOpening, "decrypted") {
			t.Fatalf("%+v %v", d, err)
		}
		opens(t, m, diskcrypt.KindNone, nil, v.Plain)
	})
	t.Run("in the middle of a step", func(t *testing.T) {
		const watermark, window = 1<<20 + 1<<18, 1 << 17
		m, v := format(t, bitlockerformat.Options{State: 2, Next: 4, Watermark: watermark, Window: window, Protectors: protectors()[:2]})
		o, err := bitlocker.Format{}.Open(ctx, m.place(), diskcrypt.KindStartupKey, envelope.CopySecret(v.Protectors[1].Secret), diskcrypt.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		for _, part := range [][2]int{{0, watermark}, {watermark + window, size}} {
			got := make([]byte, part[1]-part[0])
			if _, err := o.ReadAt(got, int64(part[0])); err != nil || !bytes.Equal(got, v.Plain[part[0]:part[1]]) {
				t.Errorf("[%d, %d): %v", part[0], part[1], err)
			}
		}
		// Nobody knows what the log's part is: it must not be given out as anything.
		for _, off := range []int64{watermark, watermark + window - 512} {
			if n, err := o.ReadAt(make([]byte, 512), off); n > 0 || err == nil {
				t.Errorf("at %d: %d bytes", off, n)
			}
		}
	})
}

// TestConcurrentReads: many readers of one opened volume.
func TestConcurrentReads(t *testing.T) {
	m, v := format(t, bitlockerformat.Options{Method: "aes-cbc-elephant-256", Protectors: protectors()[:2]})
	o := opens(t, m, diskcrypt.KindStartupKey, v.Protectors[1].Secret, v.Plain)
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			for off := k * 777; off < size-3000; off += 50_000 {
				got := make([]byte, 3000)
				if _, err := o.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, v.Plain[off:off+3000]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
}
