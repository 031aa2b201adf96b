package command_test

import (
	"os"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

const docsFile = "../../../docs/recovery.md"

// TestDocsNameEveryCommand keeps the reference in docs/recovery.md in step with
// the commands; LOCKSTEP_UPDATE_DOCS=1 writes it anew.
func TestDocsNameEveryCommand(t *testing.T) {
	const begin, end = "<!-- commands: written by the tests of lockstep-recover -->\n", "<!-- end of commands -->\n"
	var b strings.Builder
	b.WriteString("\n")
	status, help, errs := run(t, "--help")
	want(t, status, api.ExitDone, help, errs)
	b.WriteString("```text\n" + strings.TrimSpace(help) + "\n```\n\n")
	for _, name := range []string{"list", "open-check", "restore", "secrets", "unlock", "header", "verify"} {
		contains(t, help, "\n  "+name+" ")
		status, text, errs := run(t, name, "--help")
		want(t, status, api.ExitDone, text, errs)
		contains(t, text, "Exit status:", "Example:\n  lockstep-recover "+name)
		// The global flags are said once, above.
		if i := strings.Index(text, "\nGlobal flags:\n"); i >= 0 {
			text = text[:i] + text[strings.Index(text, "\nExit status:\n"):]
		}
		b.WriteString("### lockstep-recover " + name + "\n\n```text\n" + strings.TrimSpace(text) + "\n```\n\n")
	}
	raw, err := os.ReadFile(docsFile)
	check(t, err)
	doc := string(raw)
	i, j := strings.Index(doc, begin), strings.Index(doc, end)
	if i < 0 || j < i {
		t.Fatalf("%s has no place for the commands", docsFile)
	}
	now := doc[:i+len(begin)] + b.String() + doc[j:]
	if now == doc {
		return
	}
	if os.Getenv("LOCKSTEP_UPDATE_DOCS") == "" {
		t.Fatalf("%s is not in step with the commands; LOCKSTEP_UPDATE_DOCS=1 go test writes it anew", docsFile)
	}
	check(t, os.WriteFile(docsFile, []byte(now), 0o644))
}
