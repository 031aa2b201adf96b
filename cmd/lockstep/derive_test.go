package main

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/bitlockerformat"
)

// windows is a machine with a BitLocker volume on a disk without partitions.
func (w *world) windows(name string, protectors ...bitlockerformat.Protector) (image string, v *bitlockerformat.Volume) {
	w.t.Helper()
	const size = 4 << 20
	plain := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(plain)
	copy(plain, bitlockerformat.BootSector(size, 512))
	image = w.path(name + ".img")
	f, err := os.Create(image)
	if err != nil {
		w.t.Fatal(err)
	}
	if v, err = bitlockerformat.Format(w.t.Context(), f, plain, bitlockerformat.Options{Protectors: protectors}); err != nil {
		w.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.ok("", "machine", "add", name, "--disk", "vda="+image)
	return image, v
}

// A machine is given a password; its recovery password and its startup key are
// taken from the volume, which nobody ever wrote down.
func TestDerive(t *testing.T) {
	w := started(t)
	_, v := w.windows("win01",
		bitlockerformat.Protector{Kind: bitlockerformat.TPM},
		bitlockerformat.Protector{Kind: bitlockerformat.Password, Secret: []byte("a good password")},
		bitlockerformat.Protector{Kind: bitlockerformat.Recovery},
		bitlockerformat.Protector{Kind: bitlockerformat.StartupKey},
	)
	w.run("", "backup", "win01")
	derive := []string{"secret", "derive", "win01@latest/vda/disk", "--reason", "nobody wrote it down"}
	if _, said := w.want(api.ExitRefused, "", derive...); !strings.Contains(said, "no secret in custody claims") {
		t.Errorf("%s", said)
	}
	password := asked[api.SecretAddResult](w, 0, "a good password\n", "secret", "add", "win01", "--kind", "passphrase", "--file", "-")

	got := asked[api.SecretDeriveResult](w, 0, "", derive...)
	if got.From != password.Secret+"@1" || len(got.Secrets) != 2 {
		t.Fatalf("%+v", got)
	}
	out := map[string]string{}
	for i, s := range got.Secrets {
		if want := v.Protectors[i+2]; s.Kind != want.Kind || !s.Proven || s.Existing || s.State != "active" || !strings.EqualFold(s.Protector, strings.Trim(want.GUID, "{}")) {
			t.Errorf("%+v, want %s %s", s, want.Kind, want.GUID)
		}
		out[s.Kind] = w.ok("", "secret", "release", s.Secret, "--reason", "test", "--to", "-")
		if out[s.Kind] != string(v.Protectors[i+2].Secret) {
			t.Errorf("%s is not what the volume was made with", s.Kind)
		}
		shown := w.ok("", "secret", "show", s.Secret)
		if !strings.Contains(shown, "derived with "+got.From+" from volume vda/disk of recovery point "+got.Point) {
			t.Errorf("%s", shown)
		}
	}
	// Only the release that was asked for hands one out: nothing else shows it.
	before := w.said.String()
	for _, s := range out {
		if strings.Count(before, s) > 1 {
			t.Error("a derived secret was shown")
		}
	}
	if r := w.releases(); !slices.ContainsFunc(r, func(e api.AuditEntry) bool {
		return e.Object == got.From && e.Detail["for"] == "secret.derive" && e.Reason == "nobody wrote it down"
	}) {
		t.Errorf("%+v", r)
	}
	entries := asked[[]api.AuditEntry](w, 0, "", "audit", "list")
	i := slices.IndexFunc(entries, func(e api.AuditEntry) bool { return e.Action == "secret.derive" && e.Outcome == "done" })
	if i < 0 || entries[i].Reason != "nobody wrote it down" || entries[i].Detail["from"] != got.From || !strings.Contains(entries[i].Detail["secrets"], got.Secrets[0].Secret) {
		t.Errorf("%+v", entries)
	}

	// Asked again, nothing is taken twice.
	again := asked[api.SecretDeriveResult](w, 0, "", derive...)
	for i, s := range again.Secrets {
		if !s.Existing || !s.Proven || s.Secret != got.Secrets[i].Secret {
			t.Errorf("%+v", s)
		}
	}
	if all := asked[[]api.Secret](w, 0, "", "secret", "list"); len(all) != 3 || len(again.Secrets) != 2 {
		t.Errorf("%+v", all)
	}

	// Without the password, what was derived opens.
	w.ok("", "secret", "disable", password.Secret, "--reason", "test")
	w.ok("", "secret", "disable", got.Secrets[1].Secret, "--reason", "test")
	if p := asked[api.Point](w, 0, "", "backup", "win01"); p.State != api.StateProven {
		t.Errorf("%s: %v", p.State, p.Why)
	}
	if _, said := w.want(api.ExitUsage, "", "secret", "derive", "win01@latest/vda/disk"); !strings.Contains(said, "--reason") {
		t.Errorf("%s", said)
	}
	web := w.encrypted("web01.img", oldPassphrase)
	w.ok("", "machine", "add", "web01", "--disk", "vda="+web)
	w.run("", "backup", "web01")
	if _, said := w.want(api.ExitRefused, "", "secret", "derive", "web01@latest/vda/disk", "--reason", "r"); !strings.Contains(said, "BitLocker does") {
		t.Errorf("%s", said)
	}
}

// A typing error is told as such, with its place, before anything is kept.
func TestMistypedRecoveryPassword(t *testing.T) {
	w := started(t)
	_, v := w.windows("win01", bitlockerformat.Protector{Kind: bitlockerformat.Recovery})
	w.run("", "backup", "win01")
	right := string(v.Protectors[0].Secret)
	groups := strings.Split(right, "-")
	wrong := slices.Clone(groups)
	wrong[3] = wrong[3][:5] + string('0'+(wrong[3][5]-'0'+1)%10)
	for _, keep := range []bool{false, true} {
		args := []string{"secret", "add", "win01", "--kind", "recovery-password", "--file", "-"}
		if keep {
			args = append(args, "--keep")
		}
		_, said := w.want(api.ExitWrongSecret, strings.Join(wrong, "-")+"\n", args...)
		if !strings.Contains(said, "group 4 of 8") || !strings.Contains(said, "hint:") || strings.Contains(said, wrong[3]) {
			t.Errorf("%s", said)
		}
	}
	if all := asked[[]api.Secret](w, 0, "", "secret", "list"); len(all) != 0 {
		t.Errorf("%+v", all)
	}
	_, said := w.want(api.ExitWrongSecret, "", "export", "win01@latest", "--nbd", "unix:"+w.path("nbd"), "--unlock",
		"--kind", "recovery-password", "--secret-file", "vda="+w.secretFile(strings.Join(wrong, "-")))
	if !strings.Contains(said, "group 4 of 8") || strings.Contains(said, wrong[3]) {
		t.Errorf("%s", said)
	}
	added := asked[api.SecretAddResult](w, 0, strings.Join(groups, " ")+"\r\n", "secret", "add", "win01", "--kind", "recovery-password", "--file", "-")
	if len(added.Opens) == 0 {
		t.Errorf("%+v", added)
	}
}

// What only its own machine opens is warned about when it is enrolled, once;
// what anybody opens is said to be as good as plain, and needs no secret to derive.
func TestWindowsWithoutPortableProtector(t *testing.T) {
	w := started(t)
	image, _ := w.windows("win01", bitlockerformat.Protector{Kind: bitlockerformat.TPM}, bitlockerformat.Protector{Kind: bitlockerformat.TPMAndPIN})
	_, said := w.want(0, "", "machine", "add", "again", "--disk", "vda="+image)
	if n := strings.Count(said, "no portable protector"); n != 1 || strings.Contains(said, "works away from its machine") || !strings.Contains(said, "manage-bde -protectors -add") {
		t.Errorf("%d times: %s", n, said)
	}
	p := asked[api.Point](w, api.ExitNotProven, "", "backup", "win01")
	if why := strings.Join(p.Why, "\n"); p.State != api.StateUnrecoverable || !strings.Contains(why, "nothing but tpm, tpm-pin opens it") {
		t.Errorf("%s %s", p.State, why)
	}

	_, v := w.windows("win02", bitlockerformat.Protector{Kind: bitlockerformat.TPM}, bitlockerformat.Protector{Kind: bitlockerformat.ClearKey}, bitlockerformat.Protector{Kind: bitlockerformat.Recovery})
	p = asked[api.Point](w, 0, "", "backup", "win02")
	if why := strings.Join(p.Why, "\n"); p.State != api.StatePlain || !strings.Contains(why, "self-opening: clear key") {
		t.Errorf("%s %s", p.State, why)
	}
	got := asked[api.SecretDeriveResult](w, 0, "", "secret", "derive", "win02@latest/vda/disk", "--reason", "protection is suspended")
	if got.From != "clear key" || len(got.Secrets) != 1 || !got.Secrets[0].Proven {
		t.Fatalf("%+v", got)
	}
	if out := w.ok("", "secret", "release", got.Secrets[0].Secret, "--reason", "test", "--to", "-"); out != string(v.Protectors[2].Secret) {
		t.Error("another recovery password")
	}
	p = asked[api.Point](w, 0, "", "backup", "win02")
	if why := strings.Join(p.Why, "\n"); p.State != api.StateProven || !strings.Contains(why, "self-opening: clear key") {
		t.Errorf("%s %s", p.State, why)
	}
}
