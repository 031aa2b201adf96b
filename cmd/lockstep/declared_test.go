package main

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/crypto/xts"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt/veracryptformat"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// noise is a file of random bytes.
func (w *world) noise(name string, size int) string {
	w.t.Helper()
	b := make([]byte, size)
	if _, err := rand.Read(b); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(name), b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return w.path(name)
}

// ext4 is an empty file system that its own tool made.
func (w *world) ext4(size int) []byte {
	w.t.Helper()
	path := w.path("fs")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.Command(judge.Tool(w.t, "mkfs.ext4"), "-q", "-F", path).CombinedOutput(); err != nil {
		w.t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// veraCrypt is a disk that is a VeraCrypt volume with a file system in it.
func (w *world) veraCrypt(name, password string, pim uint64) string {
	w.t.Helper()
	path := w.noise(name, diskSize)
	o := veracryptformat.Options{Secret: veracrypt.Secret{Password: []byte(password), PIM: pim}, Hash: "sha512", Cipher: "aes"}
	w.edit(path, func(f *os.File) {
		if err := veracryptformat.Format(f, diskSize, o, bytes.NewReader(w.ext4(diskSize-256<<10))); err != nil {
			w.t.Fatal(err)
		}
	})
	return path
}

// plainDM is a disk that is plain dm-crypt by the defaults of cryptsetup 2.7.
func (w *world) plainDM(name, passphrase string) string {
	w.t.Helper()
	key := sha256.Sum256([]byte(passphrase))
	c, err := xts.NewCipher(aes.NewCipher, key[:])
	if err != nil {
		w.t.Fatal(err)
	}
	b := w.ext4(diskSize)
	for i := 0; i < len(b); i += 512 {
		c.Encrypt(b[i:i+512], b[i:i+512], uint64(i/512))
	}
	if err := os.WriteFile(w.path(name), b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return w.path(name)
}

func volumeStates(p api.Point) map[string]string {
	states := map[string]string{}
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			states[d.ID+"/"+v.ID] = v.Type + " " + v.State
		}
	}
	return states
}

// What nothing shows is opaque, until it is declared; then it is proven like
// the rest, in the recovery points made before as well, and the catalog's loss
// forgets nothing of it.
func TestDeclaredVolumes(t *testing.T) {
	w := started(t)
	const plain = "dm-crypt,cipher=aes-xts-plain64,size=256,hash=sha256"
	vera, dm := w.veraCrypt("vera.img", oldPassphrase, 1), w.plainDM("dm.img", newPassphrase)
	w.ok("", "machine", "add", "lab", "--disk", "vda="+vera, "--disk", "vdb="+dm)
	w.ok("", "backup", "lab")
	first := asked[api.Point](w, 0, "", "point", "show", "lab@latest")
	if first.State != api.StateOpaque {
		t.Fatalf("undeclared: %s %v", first.State, volumeStates(first))
	}
	w.want(2, "", "machine", "change", "lab", "--declare", "vda/p9=veracrypt")
	w.want(2, "", "machine", "change", "lab", "--declare", "vda=luks2")
	w.want(2, "", "machine", "change", "lab", "--declare", "vdb=dm-crypt")
	w.want(2, "", "machine", "change", "lab", "--undeclare", "vda")
	m := asked[api.MachineDetail](w, 0, "", "machine", "change", "lab", "--declare", "vda=veracrypt,hash=sha512", "--declare", "vdb="+plain)
	if m.Disks[0].Declared["disk"] != "veracrypt,hash=sha512" || m.Live[0].Volumes[0].Type != "veracrypt" || m.Live[1].Volumes[0].Declared == "" {
		t.Fatalf("declared: %+v", m)
	}

	w.want(5, "wrong\n", "secret", "add", "lab/vda/disk", "--kind", "veracrypt", "--pim", "1", "--file", "-")
	added := asked[api.SecretAddResult](w, 0, oldPassphrase+"\n", "secret", "add", "lab/vda/disk", "--kind", "veracrypt", "--pim", "1", "--file", "-")
	if len(added.Opens) != 2 || strings.Join(added.Opens[0].Protectors, " ") != "header backup" {
		t.Fatalf("added: %+v", added)
	}
	w.want(5, "wrong\n", "secret", "add", "lab/vdb/disk", "--kind", "passphrase", "--file", "-")
	w.ok(newPassphrase, "secret", "add", "lab/vdb/disk", "--kind", "passphrase", "--file", "-")

	old := asked[api.Point](w, 0, "", "point", "show", first.ID)
	if old.State != api.StateProven {
		t.Errorf("the recovery point made before the declaration: %s %v %v", old.State, old.Why, volumeStates(old))
	}
	second := w.backupOf("lab", api.StateProven)
	if s := volumeStates(second); s["vda/disk"] != "veracrypt proven" || s["vdb/disk"] != "dm-crypt proven" {
		t.Errorf("%v", s)
	}

	// The secret is released as it was assembled, and taken again.
	released := w.ok("", "secret", "release", added.Secret+"@1", "--reason", "test")
	w.said.Reset() // the release is the one answer that may say it
	var s veracrypt.Secret
	if err := json.Unmarshal([]byte(released), &s); err != nil || string(s.Password) != oldPassphrase || s.PIM != 1 {
		t.Errorf("released: %v", err)
	}
	again := asked[api.SecretAddResult](w, 0, released, "secret", "add", "lab/vda/disk", "--kind", "veracrypt", "--file", "-")
	if !again.Existing {
		t.Errorf("the released secret: %+v", again)
	}

	w.ok("", "catalog", "rebuild")
	for _, id := range []string{first.ID, second.ID} {
		if p := asked[api.Point](w, 0, "", "point", "show", id); p.State != api.StateProven {
			t.Errorf("after the rebuild: %s %v", p.State, p.Why)
		}
	}
	if m := asked[api.MachineDetail](w, 0, "", "machine", "show", "lab"); m.Disks[1].Declared["disk"] != "dm-crypt,cipher=aes-xts-plain64,hash=sha256,size=256" {
		t.Errorf("after the rebuild: %+v", m.Disks)
	}
	w.backupOf("lab", api.StateProven)
	w.ok("", "machine", "change", "lab", "--undeclare", "vda", "--undeclare", "vdb")
	w.ok("", "backup", "lab")
	if p := asked[api.Point](w, 0, "", "point", "show", "lab@latest"); p.State != api.StateOpaque {
		t.Errorf("declared no more: %s %v", p.State, p.Why)
	}
	w.redacted()
}

// backupOf is backup of another machine than web01.
func (w *world) backupOf(machine, state string) api.Point {
	w.t.Helper()
	p := asked[api.Point](w, 0, "", "backup", machine)
	if p.State != state {
		w.t.Fatalf("recovery point of %s is %s, want %s: %v", machine, p.State, state, p.Why)
	}
	return p
}

// What the key vault shows of a Linux machine's secret opens its LUKS volume,
// in the form that the extension meant.
func TestAzureDiskEncryption(t *testing.T) {
	for name, wrap := range map[string]func(passphrase string) string{
		"single": func(p string) string { return base64.StdEncoding.EncodeToString([]byte(p)) },
		"dual pass": func(p string) string {
			return base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString([]byte(p))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := started(t)
			passphrase := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb, 1, 0x77}, 43)[:127])
			w.ok("", "machine", "add", "web01", "--disk", "vda="+w.encrypted("vda.img", passphrase))
			shown, err := json.Marshal(map[string]any{"contentType": "BEK", "value": wrap(passphrase), "tags": map[string]string{"DiskEncryptionKeyFileName": "LinuxPassPhraseFileName"}})
			if err != nil {
				t.Fatal(err)
			}
			w.want(2, string(shown), "secret", "add", "web01", "--ade", "--kind", "passphrase", "--file", "-")
			_, stderr := w.want(1, passphrase, "secret", "add", "web01", "--ade", "--file", "-")
			if !strings.Contains(stderr, "az keyvault secret show") {
				t.Errorf("no hint: %s", stderr)
			}
			added := asked[api.SecretAddResult](w, 0, string(shown), "secret", "add", "web01", "--ade", "--file", "-")
			if len(added.Opens) != 1 {
				t.Fatalf("%+v", added)
			}
			if got := w.ok("", "secret", "release", added.Secret+"@1", "--reason", "test"); got != passphrase {
				t.Error("another secret was kept")
			}
			w.backup(api.StateProven)
		})
	}
}
