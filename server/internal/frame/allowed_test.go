package frame

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/source"
)

// TestAllowedSources: whatever a source makes this host open lies in a folder
// that is allowed.
func TestAllowedSources(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in, out := filepath.Join(root, "in"), filepath.Join(root, "out")
	for _, dir := range []string{in, out} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "a.qcow2"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(out, filepath.Join(in, "link")); err != nil {
		t.Skip(err)
	}
	var opened string
	f := &Frame{Deps: Deps{
		Restricted: true, AllowSources: []string{in, "nbd://backup:10809"},
		OpenSource: func(_ context.Context, spec string, _ source.Options) (source.Disk, error) {
			opened = spec
			return nil, source.ErrNotFound
		},
	}}
	for spec, want := range map[string]string{
		in + "/a.qcow2":                                          in + "/a.qcow2",
		"file://" + in + "/a.qcow2?format=qcow2":                 "file://" + in + "/a.qcow2?format=qcow2",
		"file://" + in + "/a.qcow2?format=qcow2&backing=" + in:   "file://" + in + "/a.qcow2?backing=" + strings.ReplaceAll(in, "/", "%2F") + "&format=qcow2",
		"nbd+unix:///vda?socket=" + in + "/s":                    "nbd+unix:///vda?socket=" + strings.ReplaceAll(in, "/", "%2F") + "%2Fs",
		"nbd://backup:10809/vda":                                 "nbd://backup:10809/vda",
		out + "/a.qcow2":                                         "",
		in + "/link/a.qcow2":                                     "",
		"a.qcow2":                                                "",
		"file://" + out + "/a.qcow2?format=qcow2":                "",
		"file://" + in + "/a.qcow2?format=qcow2&backing=" + out:  "",
		"file://" + in + "/a.qcow2?format=qcow2&backing=/":       "",
		"file://" + in + "/a.qcow2?backing=" + in + "&backing=/": "",
		"nbd+unix:///vda?socket=" + out + "/s":                   "",
		"nbd+unix:///vda?socket=" + in + "/link/s":               "",
		"nbds://backup:10809/vda":                                "",
		"nbd://backup/vda":                                       "",
		"nbd://evil:10809/vda":                                   "",
		"nbd://evil/vda?socket=" + in + "/s":                     "",
		"nbd://backup:10809/vda?tls-certificates=" + out:         "",
		"http://backup/vda":                                      "",
		"imported:" + in + "/a.qcow2":                            "",
	} {
		opened = ""
		_, err := f.OpenSource(t.Context(), spec, source.Options{})
		if opened != want || err == nil {
			t.Errorf("%s: opened %q, %v, want %q", spec, opened, err, want)
		}
	}
}
