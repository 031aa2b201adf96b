package cli

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// TestPolicySetChangesWhatIsNamed: the rest of the policy stays.
func TestPolicySetChangesWhatIsNamed(t *testing.T) {
	for _, k := range []struct {
		args []string
		path string
		edit func(*api.Policy)
	}{
		{[]string{"web01", "--keep-last", "7"}, "/v1/machines/web01/policy", func(p *api.Policy) { p.Retention.KeepLast = 7 }},
		{[]string{"web01", "--daily", "0", "--within", "", "--keep-tag", ""}, "/v1/machines/web01/policy", func(p *api.Policy) {
			p.Retention.Daily, p.Retention.Within, p.Retention.KeepTags = 0, "", nil
		}},
		{[]string{"web01", "--limit", "22:00-06:00,read=1G,write=64K", "--limit", "06:00-22:00,write=5M"}, "/v1/machines/web01/policy", func(p *api.Policy) {
			p.Limits = []api.PolicyLimit{{From: "22:00", To: "06:00", Read: 1 << 30, Write: 64 << 10}, {From: "06:00", To: "22:00", Write: 5 << 20}}
		}},
		{[]string{"web01", "--schedule", "every 6h", "--timezone", "UTC", "--proof-age", "", "--verify-age", "12w", "--limit", "", "--copy-to", "file:///a", "--copy-to", "file:///b"}, "/v1/machines/web01/policy", func(p *api.Policy) {
			p.Schedule, p.Timezone, p.ProofAge, p.VerifyAge, p.Limits, p.CopiesTo = "every 6h", "UTC", "", "12w", nil, []string{"file:///a", "file:///b"}
		}},
		{[]string{"--default", "--yearly", "7"}, "/v1/policy", func(p *api.Policy) {
			*p = api.Policy{Format: 1, Retention: api.PolicyRetention{KeepLast: 7, Yearly: 7}}
		}},
	} {
		f := newFake()
		if r := run(t, f, nil, append([]string{"policy", "set"}, k.args...)...); r.status != 0 {
			t.Fatalf("%v: exit status %d, %s", k.args, r.status, r.stderr)
		}
		want := fakePolicy()
		k.edit(&want)
		var got api.Policy
		if err := json.Unmarshal(f.last[k.path], &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: sent %s, want %+v", k.args, f.last[k.path], want)
		}
	}
}

// TestMarksSend: each verb states what it is called after.
func TestMarksSend(t *testing.T) {
	for _, k := range []struct {
		args []string
		want api.MarkRequest
	}{
		{[]string{"pin", "--reason", "r"}, api.MarkRequest{Kind: api.MarkPin, Set: true, Reason: "r"}},
		{[]string{"unpin"}, api.MarkRequest{Kind: api.MarkPin}},
		{[]string{"tag", "env=a=b"}, api.MarkRequest{Kind: api.MarkTag, Name: "env", Value: "a=b", Set: true}},
		{[]string{"untag", "env"}, api.MarkRequest{Kind: api.MarkTag, Name: "env"}},
		{[]string{"hold", "--case", "CASE-12", "--reason", "r"}, api.MarkRequest{Kind: api.MarkLegalHold, Name: "CASE-12", Set: true, Reason: "r"}},
		{[]string{"unhold", "--case", "CASE-12", "--reason", "r"}, api.MarkRequest{Kind: api.MarkLegalHold, Name: "CASE-12", Reason: "r"}},
	} {
		f := newFake()
		args := append([]string{"point", k.args[0], newPoint}, k.args[1:]...)
		if r := run(t, f, nil, args...); r.status != 0 {
			t.Fatalf("%v: exit status %d, %s", args, r.status, r.stderr)
		}
		var got api.MarkRequest
		if err := json.Unmarshal(f.last["/v1/points/"+newPoint+"/marks"], &got); err != nil || got != k.want {
			t.Errorf("%v: sent %+v, want %+v", args, got, k.want)
		}
	}
}

func TestPruneSends(t *testing.T) {
	f := newFake()
	if r := run(t, f, nil, "prune", "web01", "--dry-run", "--clock-is-right", "--repository", "main", "--repository", "offsite"); r.status != 0 {
		t.Fatalf("exit status %d, %s", r.status, r.stderr)
	}
	var got api.PruneRequest
	if err := json.Unmarshal(f.last["/v1/prunes"], &got); err != nil || !reflect.DeepEqual(got, api.PruneRequest{Machine: "web01", DryRun: true, ClockIsRight: true, Repositories: []string{"main", "offsite"}}) {
		t.Errorf("sent %+v", got)
	}
}
