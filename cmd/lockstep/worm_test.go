package main

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// A bucket with object lock: somebody with all rights of the backup deletes and
// overwrites everything, and gets it neither gone nor replaced. Restoring gives
// what was backed up, the next backup works, verify tells on him.
func TestLockedBucket(t *testing.T) {
	w := newWorld(t)
	server := judge.Versitygw(t)
	client, err := minio.New(strings.TrimPrefix(server.Endpoint, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(server.AccessKey, server.Secret, ""), BucketLookup: minio.BucketLookupPath, Region: "us-east-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.MakeBucket(t.Context(), "worm", minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
		t.Fatal(err)
	}
	file := w.path("s3-credentials")
	if err := os.WriteFile(file, fmt.Appendf(nil, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", server.AccessKey, server.Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	location := "s3://worm/site?" + url.Values{"endpoint": {server.Endpoint}, "credentials-file": {file}}.Encode()
	w.ok("", "init", "--kit", w.path("kit.txt"), "--repository", location)
	if l := asked[api.RepositoryLock](w, 0, "", "repository", "lock", "main", "--for", "30d"); l.For != "30d" || l.Mode != "governance" {
		t.Fatalf("%+v", l)
	}
	image := w.encrypted("web01.img", oldPassphrase)
	w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
	w.backup(api.StateUnrecoverable)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}

	listed := func() (keys []string) {
		t.Helper()
		for o := range client.ListObjects(t.Context(), "worm", minio.ListObjectsOptions{Recursive: true}) {
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			keys = append(keys, o.Key)
		}
		return keys
	}
	keys := listed()
	for i, key := range keys {
		stat, err := client.StatObject(t.Context(), "worm", key, minio.StatObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		until, err := time.Parse(time.RFC3339, stat.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
		if err != nil || time.Until(until) < 29*24*time.Hour {
			t.Errorf("%s is locked until %v, %v", key, until, err)
		}
		if err := client.RemoveObject(t.Context(), "worm", key, minio.RemoveObjectOptions{VersionID: stat.VersionID}); err == nil {
			t.Errorf("the version of %s could be deleted", key)
		}
		if i%2 == 0 {
			err = client.RemoveObject(t.Context(), "worm", key, minio.RemoveObjectOptions{})
		} else {
			_, err = client.PutObject(t.Context(), "worm", key, strings.NewReader("forged"), 6, minio.PutObjectOptions{SendContentMd5: true})
		}
		if err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	if len(keys) < 15 || len(listed()) > len(keys)/2 {
		t.Fatalf("%d objects, %d after half of them were deleted by name", len(keys), len(listed()))
	}

	w.ok("", "restore", p.ID, "--disk", "vda="+w.path("restored.img"))
	if got, err := os.ReadFile(w.path("restored.img")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was restored is another disk: %v", err)
	}
	found := asked[api.VerifyResult](w, api.ExitDamaged, "", "verify")
	said := map[string]string{}
	for _, d := range found.Damage {
		said[d.Object] += d.Error
	}
	for i, key := range keys {
		kind := "delete marker"
		if i%2 == 1 {
			kind = "newer version"
		}
		if key = strings.TrimPrefix(key, "site/"); !strings.Contains(said[key], kind) {
			t.Errorf("verify says of %s: %q, want %s", key, said[key], kind)
		}
	}
	if len(said) != len(keys) {
		t.Errorf("verify found %d of %d", len(said), len(keys))
	}

	// The store holds what the policy would let go.
	w.edit(image, func(f *os.File) {
		if _, err := f.WriteAt(bytes.Repeat([]byte("changed "), 512), diskSize-8192); err != nil {
			t.Fatal(err)
		}
	})
	w.backup(api.StateProven)
	w.ok("", "policy", "set", "web01", "--keep-last", "1")
	if out := w.ok("", "prune", "web01", "--dry-run"); strings.Count(out, "WORM until") < 2 {
		t.Errorf("prune does not say what the store holds:\n%s", out)
	}
	if _, stderr := w.want(api.ExitUsage, "", "repository", "lock", "main", "--for", "1h"); !strings.Contains(stderr, "a day") {
		t.Errorf("an hour: %s", stderr)
	}
	judge.Decided(t, "versitygw (S3 server)")
}

// A store that cannot lock is refused, and nothing changes.
func TestLockNeedsAStoreThatLocks(t *testing.T) {
	w := newWorld(t)
	w.ok("", "init", "--kit", w.path("kit.txt"))
	if _, stderr := w.want(api.ExitRefused, "", "repository", "lock", "main", "--for", "30d"); !strings.Contains(stderr, "does not lock objects") || !strings.Contains(stderr, "object lock") {
		t.Error(stderr)
	}
	if l := asked[api.RepositoryLock](w, 0, "", "repository", "lock", "main"); l.For != "" {
		t.Errorf("%+v", l)
	}
}

// What is measured adds up, and what is to be expected rests on it.
func TestRepositoryStats(t *testing.T) {
	w := newWorld(t)
	w.ok("", "init", "--kit", w.path("kit.txt"))
	image := w.encrypted("web01.img", oldPassphrase)
	w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
	w.backup(api.StateUnrecoverable)
	for i := range 3 {
		w.edit(image, func(f *os.File) {
			if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), diskSize-1<<20); err != nil {
				t.Fatal(err)
			}
		})
		w.backup(api.StateUnrecoverable)
	}
	v := asked[api.RepositoryStats](w, 0, "", "repository", "stats", "--machine", "web01")
	if len(v.Machines) != 1 || len(v.Machines[0].Points) != 4 || v.Logical != 4*diskSize || v.Stored < v.Needed || v.Needed <= 0 || v.Free == nil || *v.Free <= 0 {
		t.Fatalf("%+v", v)
	}
	m := v.Machines[0]
	if m.Machine != "web01" || m.Outlook == nil || m.Outlook.Observed != 3 || m.Outlook.PerDay <= 0 || len(m.Outlook.Ahead) != 3 {
		t.Errorf("%+v", m)
	}
	for i, p := range m.Points[:3] {
		if p.Alone <= 0 || i > 0 && p.Alone < 4096 || p.Written < 4096 || p.Logical != diskSize {
			t.Errorf("recovery point %d: %+v", i, p)
		}
	}
	if out := w.ok("", "repository", "stats"); !strings.Contains(out, "keeps growing by about") || !strings.Contains(out, "are free") {
		t.Error(out)
	}
	w.want(api.ExitFailed, "", "repository", "stats", "--machine", "nobody")
}
