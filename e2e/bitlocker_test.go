package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/bitlockerformat"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// TestBitLocker: a volume of our own making is proven by each of its portable
// secrets, and a wrong one leaves the recovery point unrecoverable.
func TestBitLocker(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	const size = 4 << 20
	plain := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(plain)
	copy(plain, bitlockerformat.BootSector(size, 512))
	image := h.path("windows.img")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	v, err := bitlockerformat.Format(context.Background(), f, plain, bitlockerformat.Options{Label: "WIN C:", Protectors: []bitlockerformat.Protector{
		{Kind: bitlockerformat.TPM},
		{Kind: bitlockerformat.Password, Secret: []byte("a good password")},
		{Kind: bitlockerformat.Recovery},
		{Kind: bitlockerformat.StartupKey},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	p := h.protect("windows", image)
	if p.State != "unrecoverable" || p.Disks[0].Volumes[0].Type != "bitlocker" || p.Disks[0].Volumes[0].Unsupported != "" {
		t.Fatalf("%+v", p)
	}
	other := "000011-000022-000033-000044-000055-000066-000077-000088"
	if r := h.run("", "secret", "add", "windows", "--kind", "recovery-password", "--file", h.write("wrong", other)); r.exit == 0 {
		t.Fatalf("a wrong recovery password was taken: %v", r)
	}
	h.ask(&p, []int{0, 3}, "backup", "windows")
	if p.State != "unrecoverable" {
		t.Errorf("with a wrong secret it is %s", p.State)
	}
	for i, kind := range []string{"passphrase", "recovery-password", "startup-key"} {
		h.do(0, "secret", "add", "windows", "--kind", kind, "--new", "--file", h.write(kind, string(v.Protectors[i+1].Secret)))
		h.ask(&p, []int{0, 3}, "backup", "windows")
		if p.State != "proven" && p.State != "at-risk" && p.State != "at risk" {
			t.Errorf("with its %s it is %s", kind, p.State)
		}
	}
}

// TestBitLockerImages: volumes of Windows itself.
func TestBitLockerImages(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	for name, password := range map[string]string{
		"bitlk-files-aes-xts-128":      "235818-357951-253979-013365-241120-245575-342914-591910",
		"bitlk-files-togo-aes-xts-128": "243067-548680-059818-148852-287771-550088-628265-631653",
		"bitlk-files-aes-cbc-256":      "616319-601744-502117-534017-367994-176748-607299-663201",
	} {
		unpack(t, h.dir, "bitlocker/"+name+".img.xz")
		p := h.protect(name, h.path(name+".img"))
		if p.State != "unrecoverable" || len(p.Disks[0].Volumes) != 1 || p.Disks[0].Volumes[0].Type != "bitlocker" {
			t.Errorf("%s: %+v", name, p)
		}
		r := h.do(0, "secret", "add", name, "--kind", "recovery-password", "--file", h.write("recovery", password))
		if !strings.Contains(r.stdout+r.stderr, "opens") {
			t.Errorf("%s: %v", name, r)
		}
		h.do(0, "prove", name+"@latest")
		judge.Decided(t, "Windows' BitLocker images")
		if err := os.Remove(h.path(name + ".img")); err != nil {
			t.Error(err)
		}
	}
}
