package lockstep_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	// A command of ours at the beginning of a line or in backticks, without its arguments.
	command = regexp.MustCompile("(?m)(?:^|`)lockstep ([a-z-]+(?: [a-z-]+)?)")
)

func markdown(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || p != "." && strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(p, ".md") {
			return nil
		}
		text, err := os.ReadFile(p)
		files[p] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	links := 0
	for p, text := range markdown(t) {
		for _, m := range markdownLink.FindAllStringSubmatch(text, -1) {
			to, _, _ := strings.Cut(m[1], "#")
			if to == "" || strings.Contains(to, "://") {
				continue
			}
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(p), to)); err != nil {
				t.Errorf("%s links to %s: %v", p, m[1], err)
			}
		}
	}
	if links < 10 {
		t.Errorf("only %d links found", links)
	}
}

// docs/cli.md is written from the commands' own help, so what other documents
// call must have its heading there.
func TestDocumentsNameCommandsThatExist(t *testing.T) {
	files := markdown(t)
	reference := files[filepath.Join("docs", "cli.md")]
	found := 0
	for _, p := range []string{
		"README.md", "HACKING.md", "THREATMODEL.md", "SECURITY.md",
		filepath.Join("docs", "glossary.md"), filepath.Join("docs", "api.md"), filepath.Join("docs", "spec", "kit.md"),
	} {
		for _, m := range command.FindAllStringSubmatch(files[p], -1) {
			found++
			words := strings.Fields(m[1])
			ok := strings.Contains(reference, "\n### lockstep "+words[0]+"\n") ||
				len(words) > 1 && strings.Contains(reference, "\n### lockstep "+words[0]+" "+words[1]+"\n")
			if !ok {
				t.Errorf("%s names `lockstep %s`, which docs/cli.md does not have", p, m[1])
			}
		}
	}
	if found < 15 {
		t.Errorf("only %d commands found", found)
	}
}
