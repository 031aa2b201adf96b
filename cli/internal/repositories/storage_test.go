package repositories

import (
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

func TestOutlook(t *testing.T) {
	const gib = int64(1) << 30
	ahead := func(a, b, c int64) *api.Outlook {
		return &api.Outlook{PerDay: gib, Ahead: []api.Expected{{Days: 30, Bytes: a * gib}, {Days: 90, Bytes: b * gib}, {Days: 365, Bytes: c * gib}}}
	}
	free, days, soon := 10*gib, 12.2, 0.7
	for _, c := range []struct {
		v    api.RepositoryStats
		want string
	}{
		{api.RepositoryStats{}, "what is to be expected shows when a machine has three recovery points"},
		{api.RepositoryStats{Stored: 100 * gib, Outlook: ahead(130, 190, 465)}, "keeps growing by about 1.0 GiB a day: about 465.0 GiB in 365 days"},
		{api.RepositoryStats{Stored: 100 * gib, Outlook: ahead(130, 160, 160)}, "keeps growing by about 1.0 GiB a day until the policies' horizon, then about 160.0 GiB"},
		{api.RepositoryStats{Stored: 100 * gib, Outlook: ahead(100, 100, 95)}, "does not grow under the policies: about 95.0 GiB in 365 days"},
		{api.RepositoryStats{Stored: 100 * gib, Outlook: ahead(130, 160, 160), Free: &free}, "keeps growing by about 1.0 GiB a day until the policies' horizon, then about 160.0 GiB; 10.0 GiB are free"},
		{
			api.RepositoryStats{Stored: 100 * gib, Outlook: ahead(130, 160, 160), Free: &free, FullIn: &days},
			"keeps growing by about 1.0 GiB a day until the policies' horizon, then about 160.0 GiB; 10.0 GiB are free: full in about 13 days",
		},
		{
			api.RepositoryStats{Stored: 100 * gib, Outlook: ahead(130, 190, 465), Free: &free, FullIn: &soon},
			"keeps growing by about 1.0 GiB a day: about 465.0 GiB in 365 days; 10.0 GiB are free: full in about 1 day",
		},
	} {
		if got := outlook(c.v); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}
