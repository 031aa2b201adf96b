package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/api"
)

// theSecret must never be in any output but the release that asks for it.
const theSecret = "correct horse battery staple"

const (
	oldPoint = "7d2c51a0e4b84f0f9a6e2f4f3c1b9a01"
	midPoint = "7d2c51a0e4b8550f9a6e2f4f3c1b9a02"
	newPoint = "c41f9e33aa0d4c7db8f05d9d7e6c2b03"
	dbPoint  = "0be8b1b3f7f34c5fb6b9a4a4cf0d1e04"
	oldRef   = "web01-5f0c@1"
	newRef   = "web01-5f0c@2"
)

func at(hour int) time.Time { return time.Date(2026, 3, 14, hour, 15, 0, 0, time.UTC) }

func fakeVolume(disk, state string, openedBy ...string) api.Volume {
	v := api.Volume{
		ID: "p2", Disk: disk, Type: "luks2", UUID: "5f0c2c9e-8a55-4d0c-9a57-0c4d5b6a7e10", Label: "root\x1b[2Jroot",
		Cipher: "aes-xts-plain64", KeyBits: 512, SectorSize: 4096, OffsetBytes: 1 << 30, SizeBytes: 7 << 30,
		Epoch: "v1:0badcafe0badcafe", State: state,
		Protectors: []api.Protector{{ID: "slot-0", Kind: "passphrase", Fingerprint: "v1:aa", KDF: "argon2id", OpenedBy: openedBy}},
	}
	if state == api.StateUnrecoverable {
		v.Why = []string{"no secret in custody opens slot-0, which is new since " + midPoint[:12]}
	}
	return v
}

func fakePoint(id, machine, state string, hour int, openedBy ...string) api.Point {
	p := api.Point{
		ID: id, Machine: machine, MachineID: "m-" + machine, Repository: "file:///var/lib/lockstep/repository",
		Time: at(hour), State: state, Consistency: "crash-consistent", Sequence: int64(hour), Transfer: "incremental",
		Description: "nightly", ReadBytes: 8 << 30, ChangedBytes: 12 << 20, StoredBytes: 11 << 20, MapBytes: 4096, DurationSeconds: 12.34,
		Disks: []api.PointDisk{{
			ID: "vda", SizeBytes: 8 << 30, ContentRoot: "b3:1234", Volumes: []api.Volume{fakeVolume("vda", state, openedBy...)},
			Areas: []api.Area{{ID: "p1", Class: "ext4", Note: "boot"}},
		}},
	}
	if state == api.StateUnrecoverable {
		p.Changes = []string{"vda/p2: protector slot-0 rotated"}
	}
	return p
}

func fakePoints() []api.Point {
	first := fakePoint(oldPoint, "web01", api.StateProven, 1, oldRef)
	first.Transfer, first.ChangedBytes, first.Description = "full", 8<<30, ""
	return []api.Point{
		fakePoint(newPoint, "web01", api.StateUnrecoverable, 3),
		fakePoint(midPoint, "web01", api.StateProven, 2, oldRef),
		first,
	}
}

func fakeStatus() api.Status {
	newest, db := at(3), at(4)
	return api.Status{Machines: []api.MachineStatus{
		{
			Machine: "db01", State: api.StateProven, Latest: &db, Secrets: []string{"db01-77aa@1"}, States: []string{"active"},
			Points: []api.PointSummary{{ID: dbPoint, Time: db, State: api.StateProven, Transfer: "full", ChangedBytes: 3 << 30, Opens: []string{"yes"}}},
		},
		{
			Machine: "web01", State: api.StateUnrecoverable, Latest: &newest,
			Secrets: []string{oldRef, newRef}, States: []string{"deactivated", "active"},
			Points: []api.PointSummary{
				{ID: newPoint, Time: at(3), State: api.StateUnrecoverable, Why: []string{"vda/p2: no secret in custody opens slot-0"}, Transfer: "incremental", ChangedBytes: 12 << 20, Opens: []string{"no", "untried"}, Epochs: []string{"0badcafe"}},
				{ID: midPoint, Time: at(2), State: api.StateProven, Transfer: "incremental", ChangedBytes: 40960, Opens: []string{"yes", "no"}, Epochs: []string{"0badcafe"}},
				{ID: oldPoint, Time: at(1), State: api.StateProven, Transfer: "full", ChangedBytes: 8 << 30, Opens: []string{"yes", "no"}, Epochs: []string{"0badcafe"}},
			},
			Notes: []string{"vda/p3 is declared not needed: swap with a random key"},
		},
		{Machine: "new01", State: api.StatePlain},
	}}
}

func fakeSecret() api.Secret {
	return api.Secret{ID: "web01-5f0c", Machine: "web01", Kind: "passphrase", Versions: []api.SecretVersion{
		{
			Version: 1, Ref: oldRef, State: "deactivated", Created: at(0),
			Holds:   []api.SecretHold{{Repository: "file:///var/lib/lockstep/repository", Machine: "web01", Point: oldPoint, Since: at(1)}},
			History: []api.SecretTransition{{State: "active", At: at(0)}, {State: "deactivated", At: at(3), Reason: "rotated"}},
		},
		{Version: 2, Ref: newRef, State: "active", Created: at(3), Holds: []api.SecretHold{}},
	}}
}

// fake is an API that answers from a script: names of machines and recovery
// points choose what happens.
type fake struct {
	mu   sync.Mutex
	jobs map[string]*fakeJob
	seen []string // methods and paths of the requests
	last map[string]json.RawMessage
}

type fakeJob struct {
	job      api.Job
	blocks   bool // runs until it is cancelled
	canceled chan struct{}
	started  chan struct{}
	once     sync.Once
}

func newFake() *fake {
	return &fake{jobs: map[string]*fakeJob{}, last: map[string]json.RawMessage{}}
}

func refuse(w http.ResponseWriter, e api.Error) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (f *fake) start(w http.ResponseWriter, j api.Job) {
	f.mu.Lock()
	j.ID = fmt.Sprintf("job-%d", len(f.jobs)+1)
	j.Created = at(5)
	if j.State == "" {
		j.State = "succeeded"
	}
	fj := &fakeJob{job: j, canceled: make(chan struct{}), started: make(chan struct{})}
	fj.blocks = j.State == "running"
	f.jobs[j.ID] = fj
	f.mu.Unlock()
	j.State = "running"
	answer(w, http.StatusAccepted, api.Job{ID: j.ID, Kind: j.Kind, State: "running", Created: j.Created})
}

func (f *fake) job(id string) *fakeJob {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.jobs[id]
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.seen = append(f.seen, r.Method+" "+r.URL.RequestURI())
	f.mu.Unlock()
	f.mux().ServeHTTP(w, r)
}

// body decodes a request and keeps it for the test to look at.
func body[T any](f *fake, r *http.Request) T {
	var v T
	raw := json.RawMessage{}
	if err := json.NewDecoder(r.Body).Decode(&raw); err == nil {
		_ = json.Unmarshal(raw, &v)
	}
	f.mu.Lock()
	f.last[r.URL.Path] = raw
	f.mu.Unlock()
	return v
}

func notFound(what, name string) api.Error {
	return api.Error{Status: 404, Title: "Not Found", Detail: fmt.Sprintf("find %s: there is no %s %q", what, what, name), Exit: 1}
}

func (f *fake) mux() *http.ServeMux {
	mux := http.NewServeMux()
	f.machines(mux)
	f.custody(mux)
	f.points(mux)
	f.work(mux)
	for _, add := range fakeRoutes {
		add(f, mux)
	}
	return mux
}

// fakeRoutes are those of groups whose fake is a file of its own: an init
// function in fake_<group>_test.go appends to it.
var fakeRoutes []func(*fake, *http.ServeMux)

func (f *fake) machines(mux *http.ServeMux) {
	machine := api.Machine{ID: "m-web01", Name: "web01", Created: at(0), Disks: []api.DiskDef{{ID: "vda", Source: "/srv/web01.img"}, {ID: "vdb", Source: "/srv/web01-data.img", Header: "/srv/data.header"}}}
	live := []api.DiskView{
		{ID: "vda", SizeBytes: 8 << 30, Volumes: []api.Volume{fakeVolume("vda", "")}, Areas: []api.Area{{ID: "p1", Class: "ext4", Note: "boot"}}},
		{ID: "vdb", Error: "open /srv/web01-data.img: no such file or directory"},
	}
	mux.HandleFunc("GET /v1/machines", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, []api.Machine{machine, {ID: "m-db01", Name: "db01", Created: at(0), Disks: []api.DiskDef{{ID: "sda", Source: "/dev/vg/db01"}}}})
	})
	mux.HandleFunc("POST /v1/machines", func(w http.ResponseWriter, r *http.Request) {
		m := body[api.MachineCreate](f, r)
		switch m.Name {
		case "bad name":
			refuse(w, api.Error{Status: 422, Title: "Unprocessable Entity", Detail: "enrol machine: \"bad name\" is not a name", Exit: 2})
		case "taken":
			refuse(w, api.Error{Status: 409, Title: "Conflict", Detail: "enrol machine: there is a machine \"taken\" already", Exit: 4, Hint: "choose another name"})
		default:
			answer(w, 201, api.MachineDetail{Machine: api.Machine{ID: "m-1", Name: m.Name, Created: at(0), Disks: m.Disks}, State: api.StatePlain, Live: live[:1], Warnings: []string{"vda: in use by another program"}})
		}
	})
	mux.HandleFunc("GET /v1/machines/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "web01" {
			refuse(w, notFound("machine", r.PathValue("name")))
			return
		}
		latest := fakePoints()[0]
		answer(w, 200, api.MachineDetail{Machine: machine, State: api.StateUnrecoverable, Points: 3, Latest: &latest, Live: live})
	})
	mux.HandleFunc("PATCH /v1/machines/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "web01" {
			refuse(w, notFound("machine", r.PathValue("name")))
			return
		}
		m := body[api.MachineChange](f, r)
		answer(w, 200, api.MachineDetail{Machine: api.Machine{ID: machine.ID, Name: machine.Name, Created: at(0), Disks: m.Disks}, State: api.StateProven, Live: live[:1]})
	})
	mux.HandleFunc("DELETE /v1/machines/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") == "db01" {
			refuse(w, api.Error{Status: 409, Title: "Conflict", Detail: "remove machine: db01 has 1 recovery point", Exit: 4, Hint: "delete its recovery points first", Items: []string{dbPoint}})
			return
		}
		w.WriteHeader(204)
	})
	mux.HandleFunc("GET /v1/machines/{name}/volumes", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("point") {
		case "":
			answer(w, 200, live)
		case midPoint:
			v := fakeVolume("vda", api.StateProven, oldRef)
			v.Protectors = append(v.Protectors, api.Protector{ID: "slot-1", Kind: "passphrase", KDF: "pbkdf2", OpenedBy: nil, Note: "priority high"})
			swap := api.Volume{ID: "p3", Disk: "vda", Type: "opaque", SizeBytes: 1 << 30, State: api.StateOpaque, NotNeeded: "swap with a random key"}
			answer(w, 200, []api.DiskView{{ID: "vda", SizeBytes: 8 << 30, Volumes: []api.Volume{v, swap}, Areas: live[0].Areas}})
		case newPoint:
			answer(w, 200, []api.DiskView{{ID: "vda", SizeBytes: 8 << 30, Volumes: fakePoints()[0].Disks[0].Volumes}})
		default:
			refuse(w, notFound("recovery point", r.URL.Query().Get("point")))
		}
	})
	mux.HandleFunc("POST /v1/machines/{name}/not-needed", func(w http.ResponseWriter, r *http.Request) {
		if body[api.NotNeeded](f, r).Reason == "" {
			answer(w, 200, []api.Point{})
			return
		}
		answer(w, 200, fakePoints()[1:])
	})
}

func (f *fake) custody(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/secrets", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("machine") == "none" {
			answer(w, 200, nil)
			return
		}
		answer(w, 200, []api.Secret{fakeSecret()})
	})
	mux.HandleFunc("POST /v1/secrets", func(w http.ResponseWriter, r *http.Request) {
		s := body[api.SecretAdd](f, r)
		if string(s.Data) != theSecret {
			if s.Keep {
				answer(w, 201, api.SecretAddResult{Secret: "web01-5f0c", Version: 3, State: "pre-active"})
				return
			}
			// A careless server: it repeats what it did not accept.
			w.WriteHeader(422)
			_ = json.NewEncoder(w).Encode(map[string]any{
				"status": 422, "title": "Unprocessable Entity", "detail": "add secret: no protector opened with it", "exit": 5,
				"errors": []map[string]any{{"message": "opens nothing", "location": "body.data", "value": string(s.Data)}},
			})
			return
		}
		answer(w, 201, api.SecretAddResult{
			Secret: "web01-5f0c", Version: 2, State: "active",
			Opens:  []api.SecretOpens{{Disk: "vda", Volume: "p2", Protectors: []string{"slot-0"}}, {Point: newPoint, Disk: "vda", Volume: "p2", Protectors: []string{"slot-0"}}},
			Proven: []string{newPoint}, Messages: []string{"web01-5f0c@1 is deactivated: it opens older recovery points only"},
		})
	})
	mux.HandleFunc("GET /v1/secrets/{id}", func(w http.ResponseWriter, r *http.Request) {
		if id := r.PathValue("id"); id != "web01" && id != "web01-5f0c" {
			refuse(w, notFound("secret", id))
			return
		}
		answer(w, 200, fakeSecret())
	})
	mux.HandleFunc("POST /v1/secrets/{ref}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		reason := body[api.Reason](f, r)
		if reason.Reason == "" {
			refuse(w, api.Error{Status: 422, Title: "Unprocessable Entity", Detail: "no reason", Exit: 2})
			return
		}
		switch r.PathValue("verb") {
		case "release":
			answer(w, 200, api.Released{Ref: r.PathValue("ref"), Kind: "passphrase", Data: []byte(theSecret)})
		case "destroy":
			if strings.HasSuffix(r.PathValue("ref"), "@1") {
				refuse(w, api.Error{
					Status: 409, Title: "Conflict", Detail: "destroy secret: " + oldRef + " is held by 2 recovery points", Exit: 4,
					Hint: "delete these recovery points first, or keep the secret", Items: []string{oldPoint, midPoint},
				})
				return
			}
			fallthrough
		default:
			answer(w, 200, fakeSecret())
		}
	})
}

func (f *fake) points(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/points", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("machine") {
		case "":
			answer(w, 200, append(fakePoints(), fakePoint(dbPoint, "db01", api.StateProven, 4, "db01-77aa@1")))
		case "web01":
			answer(w, 200, fakePoints())
		default:
			answer(w, 200, nil)
		}
	})
	mux.HandleFunc("GET /v1/points/{point}", func(w http.ResponseWriter, r *http.Request) {
		switch id := r.PathValue("point"); id {
		case "web01@latest", newPoint:
			answer(w, 200, fakePoints()[0])
		case "web01@2026-03-14T02:30:00Z", midPoint, midPoint[:13]:
			answer(w, 200, fakePoints()[1])
		case dbPoint:
			answer(w, 200, fakePoint(dbPoint, "db01", api.StateProven, 4, "db01-77aa@1"))
		default:
			refuse(w, notFound("recovery point", id))
		}
	})
	mux.HandleFunc("DELETE /v1/points/{point}", func(w http.ResponseWriter, r *http.Request) {
		req := body[api.PointDelete](f, r)
		v := api.PointDeleted{Deleted: r.PathValue("point"), Repository: "main"}
		if req.Repository == "" && strings.HasPrefix(v.Deleted, "kept") {
			v.StillIn = []string{"offsite"}
		}
		answer(w, 200, v)
	})
	mux.HandleFunc("GET /v1/points/{point}/disks/{disk}/volumes/{volume}/header", func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("volume") {
		case "p2":
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write([]byte("LUKS\xba\xbe" + strings.Repeat("h", 5000)))
		case "p9": // breaks off
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte("LUKS"))
		default:
			refuse(w, notFound("volume", r.PathValue("volume")))
		}
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s := fakeStatus()
		switch name := r.URL.Query().Get("machine"); name {
		case "":
		case "none":
			s.Machines = nil
		case "damaged":
			s = api.Status{Damaged: []string{"r1"}, Warnings: []string{"repository r1 is DAMAGED (damaged objects: 1, of web01): 'lockstep verify' names it"}}
		case "overdue":
			s = api.Status{Warnings: []string{"data in repository r1 has not been read back since 2025-01-01: 'lockstep scrub' reads what is oldest first"}}
		default:
			var only []api.MachineStatus
			for _, m := range s.Machines {
				if m.Machine == name {
					only = append(only, m)
				}
			}
			if only == nil {
				refuse(w, notFound("machine", name))
				return
			}
			s.Machines = only
		}
		answer(w, 200, s)
	})
	mux.HandleFunc("GET /v1/audit", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, []api.AuditEntry{
			{Index: 99, Time: at(1), Actor: "uid:0", Action: "backup.commit", Object: oldPoint, Outcome: "done"},
			{Index: 100, Time: at(3), Actor: "uid:0", Action: "secret.destroy", Object: oldRef, Outcome: "refused", Reason: "held by 2 recovery points"},
		})
	})
	mux.HandleFunc("POST /v1/audit/verify", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, api.AuditReport{Entries: 101, Root: "b3:77", Checkpoints: 1})
	})
}

// work are the jobs.
func (f *fake) work(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/backups", func(w http.ResponseWriter, r *http.Request) {
		j := api.Job{Kind: "backup"}
		switch b := body[api.BackupRequest](f, r); b.Machine {
		case "web01":
			p := fakePoints()[0]
			j.Backup, j.Exit = &p, 3
		case "db01":
			p := fakePoint(dbPoint, "db01", api.StateProven, 4, "db01-77aa@1")
			j.Backup, j.Warnings = &p, []string{"the clock went backwards by 3 s"}
		case "risk":
			p := fakePoint(dbPoint, "risk", api.StateAtRisk, 4, "db01-77aa@1")
			p.Why = []string{"there is one copy of the secret"}
			j.Backup = &p // a server that does not say 3
		case "headerless", "erased", "foreign", "mixed":
			p := fakePoint(dbPoint, b.Machine, api.StateUnrecoverable, 4)
			p.Disks[0].Volumes[0].Why = []string{map[string]string{
				"headerless": "header loss: the header is gone; recovery point R has it",
				"erased":     "header erased: it has no key slot; recovery point R has the header of the same volume key",
				"foreign":    "cannot be opened by this version: cipher serpent",
				"mixed":      "header loss: the header is gone; recovery point R has it",
			}[b.Machine]}
			if b.Machine == "mixed" {
				other := fakeVolume("vda", api.StateUnrecoverable)
				other.ID = "p3"
				p.Disks[0].Volumes = append(p.Disks[0].Volumes, other)
			}
			if b.Machine == "headerless" { // nothing at all is left in its place
				p.Why, p.Disks[0].Volumes = []string{"vda/p2: " + p.Disks[0].Volumes[0].Why[0]}, nil
			}
			j.Backup, j.Exit = &p, 3
		case "unproven":
			p := fakePoint(dbPoint, "unproven", api.StateUnproven, 4)
			p.Why = []string{"the key manager does not answer"}
			j.Backup = &p
		case "damaged": // not proven and damaged: damaged it is
			p := fakePoints()[0]
			j.Backup, j.Exit, j.State = &p, 3, "failed"
			j.Error = &api.Error{Status: 500, Title: "damaged", Detail: "backup: read the parent's map: damaged", Exit: 6}
		case "busy":
			refuse(w, api.Error{Status: 409, Title: "Conflict", Detail: "backup: another backup of busy is running", Exit: 8})
			return
		case "slow":
			j.State = "running"
		default:
			refuse(w, notFound("machine", b.Machine))
			return
		}
		f.start(w, j)
	})
	mux.HandleFunc("POST /v1/proofs", func(w http.ResponseWriter, r *http.Request) {
		j := api.Job{Kind: "prove"}
		if p := body[api.ProveRequest](f, r); p.All {
			j.Prove, j.Exit = fakePoints(), 3
			j.Prove[0].Why = []string{"vda/p2: no secret in custody opens slot-0"}
		} else {
			j.Prove = fakePoints()[1:]
		}
		f.start(w, j)
	})
	mux.HandleFunc("POST /v1/restores", func(w http.ResponseWriter, r *http.Request) {
		q := body[api.RestoreRequest](f, r)
		if strings.Contains(q.Targets[0].Target, "full") && !q.Force {
			f.start(w, api.Job{Kind: "restore", State: "failed", Exit: 7, Error: &api.Error{
				Status: 409, Title: "target", Detail: "restore: " + q.Targets[0].Target + " is not empty", Exit: 7, Hint: "--force writes over it",
			}})
			return
		}
		j := api.Job{Kind: "restore", JobResult: api.JobResult{Restore: &api.RestoreResult{
			Point: midPoint, State: api.StateProven, Keys: []api.PointKey{{Disk: "vda", Volume: "p2", State: api.StateProven, Opens: []string{oldRef}}},
			Disks: []api.RestoredDisk{{ID: "vda", Target: q.Targets[0].Target, SizeBytes: 8 << 30, WrittenBytes: 3 << 30, ContentRoot: "b3:1234", Seconds: 21.5}},
		}}}
		if strings.Contains(q.Targets[0].Target, "damaged") {
			if !q.KeepGoing {
				refuse(w, api.Error{Status: 500, Title: "damaged", Detail: "restore disk vda: read seg/aa/01: authentication failed", Exit: 6})
				return
			}
			j.Exit = 6
			j.Restore.Disks[0].Damaged = []api.DamagedRange{{Range: api.Range{Offset: 65536, Length: 131072}, Object: "seg/aa/01", Error: "authentication failed"}}
		}
		f.start(w, j)
	})
	mux.HandleFunc("POST /v1/verifications", func(w http.ResponseWriter, r *http.Request) {
		j := api.Job{Kind: "verify", JobResult: api.JobResult{Verify: &api.VerifyResult{Points: 3, Objects: 120, ReadBytes: 9 << 30}}}
		q := body[api.VerifyRequest](f, r)
		switch j.Verify.Depth = "data"; {
		case q.Structure:
			j.Verify.Depth, j.Verify.ReadBytes = "structure", 0
		case q.Sample > 0:
			j.Verify.Depth, j.Verify.Sample, j.Verify.Seed = "sample", q.Sample, "0102030405060708090a0b0c0d0e0f10"
		}
		if len(q.Points) > 0 && q.Points[0] == newPoint {
			j.Verify.Damage = []api.Damage{{Object: "segments/aa/01", Machine: "web01", Disk: "vda", Range: &api.Range{Offset: 65536, Length: 4096}, Points: []string{newPoint}, Error: "authentication failed"}}
		}
		f.start(w, j)
	})
	mux.HandleFunc("POST /v1/catalog/rebuild", func(w http.ResponseWriter, _ *http.Request) {
		f.start(w, api.Job{Kind: "rebuild", JobResult: api.JobResult{Rebuild: &api.RebuildResult{
			Repository: "file:///var/lib/lockstep/repository", Machines: 2, Points: 4, Proofs: 3, Holds: 3,
			NotRebuilt: []string{"the audit log", "users"}, Problems: []string{"web01: one sidecar is damaged"},
		}}})
	})
	mux.HandleFunc("GET /v1/jobs", func(w http.ResponseWriter, _ *http.Request) {
		ended := at(6)
		answer(w, 200, []api.Job{
			{ID: "job-2", Kind: "backup", State: "running", Created: at(6)},
			{ID: "job-1", Kind: "backup", State: "failed", Created: at(5), Ended: &ended, Exit: 8, Error: &api.Error{Detail: "backup: another backup of web01 is running", Exit: 8}},
		})
	})
	mux.HandleFunc("GET /v1/jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		if j := f.jobFor(r); j != nil {
			answer(w, 200, j.job)
			return
		}
		refuse(w, notFound("job", r.PathValue("id")))
	})
	mux.HandleFunc("POST /v1/jobs/{id}/cancel", func(w http.ResponseWriter, r *http.Request) {
		j := f.jobFor(r)
		if j == nil {
			refuse(w, notFound("job", r.PathValue("id")))
			return
		}
		j.once.Do(func() {
			f.mu.Lock()
			j.job.State, j.job.Exit = "canceled", 130
			f.mu.Unlock()
			close(j.canceled)
		})
		answer(w, 200, j.job)
	})
	mux.HandleFunc("GET /v1/jobs/{id}/events", f.events)
}

// jobFor returns a started job, or makes job-1 as one that ended well.
func (f *fake) jobFor(r *http.Request) *fakeJob {
	id := r.PathValue("id")
	if j := f.job(id); j != nil || id != "job-1" {
		return j
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs[id] = &fakeJob{job: api.Job{ID: id, Kind: "prove", State: "succeeded", Created: at(5)}, canceled: make(chan struct{}), started: make(chan struct{})}
	return f.jobs[id]
}

func (f *fake) events(w http.ResponseWriter, r *http.Request) {
	j := f.jobFor(r)
	if j == nil {
		refuse(w, notFound("job", r.PathValue("id")))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	after := 0
	_, _ = fmt.Sscan(r.URL.Query().Get("after"), &after)
	n := 0
	send := func(e api.JobEvent) {
		n++
		e.N, e.Time = n, at(5)
		if n <= after {
			return
		}
		b, err := json.Marshal(e)
		if err != nil {
			panic(errors.New("marshal an event"))
		}
		_, _ = fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.N, e.Kind, b)
		if fl, ok := w.(http.Flusher); ok {
			fl.Flush()
		}
	}
	send(api.JobEvent{Kind: "progress", Phase: "scan", Done: 1 << 30, Total: 8 << 30, Unit: "bytes"})
	send(api.JobEvent{Kind: "message", Message: "tracking lost: everything is read and compared"})
	send(api.JobEvent{Kind: "progress", Phase: "scan", Done: 8 << 30, Total: 8 << 30, Unit: "bytes"})
	if j.blocks {
		select {
		case <-j.started:
		default:
			close(j.started)
		}
		select {
		case <-j.canceled:
		case <-r.Context().Done():
			return
		}
	}
	send(api.JobEvent{Kind: "done"})
}
