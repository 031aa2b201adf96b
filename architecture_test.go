// Package lockstep_test holds the architecture as a test: which folder may
// import which, where third-party modules and some of the standard library may
// appear, and how large things may get. The data is policy (see HACKING.md): a
// build that breaks it is changed, not the data.
package lockstep_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/lockstep-backup/lockstep"

// lattice says who may import whom. "a, b < c, d" lets c and d import a and b,
// and whatever a and b may import. What is not said is not allowed. Names
// without a folder yet are the places of what is to come.
const lattice = `
	# ground: the standard library and golang.org/x only
	NONE < disk, envelope, store, retention, api, audit, nbd;
	NONE < job;
	NONE < repository/format;
	NONE < store/remote;
	store/remote < store;

	# engines and ports; a secret in a signature is an envelope.Secret
	disk < blockstack;
	blockstack, envelope < diskcrypt;
	diskcrypt < unlock;
	disk, blockstack < browse;
	disk, nbd < source, target;
	source, target, store < limit;
	disk, envelope, store, repository/format < repository;
	envelope < kit;
	envelope, store < keymanager;
	retention < policy;
	disk < catalog;

	# the heart
	diskcrypt, keymanager, envelope < custody;

	# operations; what one proves, it writes into the audit log
	repository, target < restore;
	restore, custody, kit < rescue;
	source, diskcrypt, repository, custody, catalog, audit < prove;
	prove, policy < backup;
	backup < rebuild, importing;
	repository, custody, diskcrypt, catalog, nbd < verify, export;
	unlock < export, rescue;
	export, browse, unlock, prove < drill;
	policy, repository, custody, catalog < prune;

	# what people and scripts talk to
	api, diskcrypt < agent;
	limit, backup, importing, prove, rebuild, restore, verify, drill, browse, export, prune, unlock, job, api, audit, portal < server;
	api < portal, cli;
`

// Adapters are the folders directly below a port. They may import the port and
// what it may, and only programs and tests import them: adapters are chosen in
// cmd/. custody/prover is one: another place to run the prover; drill/fscheck and drill/qemuboot run other programs; export/fusefs
// is one: it wants a kernel and a module that reading over NBD does not.
var ports = []string{"source", "target", "store", "diskcrypt", "keymanager", "catalog", "custody", "export", "drill"}

// Programs are wiring: they may import anything but what only tests may.
var programs = []string{"cmd", "bench", "internal/judge/cmd"}

// Test support is imported by tests only: conformance suites, doubles, judges.
func isTestSupport(pkg string) bool {
	return strings.HasSuffix(pkg, "test") || pkg == "internal/judge" || pkg == "store/faultstore" || pkg == "store/memstore"
}

// imports beyond this module, and who may have them. "tests" = _test.go files
// and test support only. What is under third party and not listed is refused.
var imports = []struct {
	prefix string
	who    []string
	why    string
}{
	{"filippo.io/age", []string{"envelope"}, "sealing to recipients has one place, with its limits and its errors"},
	{"github.com/zeebo/blake3", []string{"repository"}, "the digest is part of the repository format"},
	{"github.com/klauspost/compress", []string{"repository", "browse"}, "compression is part of the repository format, and of btrfs"},
	{"github.com/cespare/xxhash/v2", []string{"browse"}, "a checksum of btrfs"},
	{"modernc.org/sqlite", []string{"catalog/sqlite"}, "database drivers appear in adapters only"},
	{"github.com/pressly/goose/v3", []string{"catalog/sqlite"}, "migrations belong to the database adapter"},
	{"github.com/danielgtaylor/huma/v2", []string{"server"}, "the wire types in api/ know no framework"},
	{"github.com/spf13/cobra", []string{"cli", "cmd"}, "commands are the CLI's business"},
	{"github.com/vbauerster/mpb/v8", []string{"cli"}, "progress bars are the CLI's business"},
	{"github.com/Azure/azure-sdk-for-go/sdk/azcore", []string{"store/azureblob"}, "one adapter for one service"},
	{"github.com/Azure/azure-sdk-for-go/sdk/azidentity", []string{"store/azureblob"}, "one adapter for one service"},
	{"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob", []string{"store/azureblob"}, "one adapter for one service"},
	{"google.golang.org/api", []string{"store/gcs"}, "a provider's SDK appears in its adapter only"},
	{"github.com/robfig/cron/v3", []string{"policy"}, "calendar expressions mean what they mean in cron"},
	{"github.com/hanwen/go-fuse/v2", []string{"export/fusefs", "drill/fscheck"}, "mounting is an adapter's business"},
	{"github.com/jzelinskie/whirlpool", []string{"diskcrypt"}, "a hash that VeraCrypt derives keys with"},
	{"github.com/aead/serpent", []string{"diskcrypt"}, "a cipher of dm-crypt and VeraCrypt"},
	{"golang.org/x/term", []string{"cli", "cmd"}, "only the CLI has a terminal"},
	{"golang.org/x/", []string{"*"}, "the Go project's own modules"},
	{"github.com/secure-systems-lab/go-securesystemslib", []string{"tests"}, "an independent judge of our DSSE envelopes"},
	{"github.com/rogpeppe/go-internal", []string{"tests"}, "test scripts of the commands"},
	{"pgregory.net/rapid", []string{"tests"}, "properties in tests"},
	{"lukechampine.com/adiantum", []string{"tests"}, "an independent judge of our Adiantum"},

	{"net/http", []string{"api", "server", "cmd", "store/remote", "store/s3", "store/azureblob", "store/gcs", "tests"}, "one contract, one client, one server; stores that speak HTTP"},
	{"github.com/minio/minio-go/v7", []string{"store/s3"}, "a provider's SDK appears in its adapter only"},
	{"database/sql", []string{"catalog/sqlite"}, "SQL appears in the catalog's adapters only"},
	{"os/exec", []string{"custody/prover", "source/nbd/qemunbd", "bench", "cmd", "tests", "drill/fscheck", "drill/qemuboot"}, "the prover, QEMU's reader of image formats, and what a drill rehearses with, are the processes we start"},
	{"math/rand", []string{"tests", "bench"}, "what is random here is secret or unique: crypto/rand"},
	{"log", []string{"tests"}, "a *slog.Logger is handed down"},
	{"testing", []string{"tests"}, "programs do not carry the test framework"},
	{"io/ioutil", nil, "superseded by io and os"},
	{"encoding/gob", nil, "no format of ours depends on Go types"},
	{"plugin", nil, "everything builds without cgo"},
	{"C", nil, "everything builds without cgo"},
}

// exact standard-library paths in imports do not cover what lies below them,
// except these.
var withChildren = []string{"net/http", "math/rand", "testing"}

// environment is what reads configuration from the process: only programs do,
// and hand it down.
var environment = []string{"os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv", "flag.Parse"}

// Names that say nothing about what is inside.
var emptyNames = []string{"util", "utils", "common", "helper", "helpers", "types", "base", "misc"}

// The ratchet. An entry of exceptions names what was larger when the rule came;
// it may shrink, and goes when it fits.
const (
	maxFileLines        = 800
	maxPackageLines     = 3000 // without tests
	maxInterfaceMethods = 7
)

var exceptions = map[string]int{}

// file is one Go file of the tree, whatever system it is for.
type file struct {
	path  string // from the root, with slashes
	pkg   string // folder from the root, "." = root
	test  bool
	lines int
	ast   *ast.File
	fset  *token.FileSet
}

func tree(t *testing.T) []file {
	t.Helper()
	var files []file
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != "." && (name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(fset, p, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		p = filepath.ToSlash(p)
		files = append(files, file{
			path: p, pkg: path.Dir(p), test: strings.HasSuffix(name, "_test.go"),
			lines: bytes.Count(src, []byte("\n")), ast: parsed, fset: fset,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("only %d Go files found: is this the root of the module?", len(files))
	}
	return files
}

func (f file) at(p token.Pos) string { return fmt.Sprintf("%s:%d", f.path, f.fset.Position(p).Line) }

// rules are the lattice, parsed: package → what it may import of the module.
func rules(text string) (map[string]map[string]bool, error) {
	direct := map[string][]string{}
	var lines []string
	for line := range strings.Lines(text) {
		if line, _, _ = strings.Cut(line, "#"); strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	names := func(s string) (out []string) {
		for n := range strings.SplitSeq(s, ",") {
			if n = strings.TrimSpace(n); n != "NONE" {
				out = append(out, n)
			}
		}
		return out
	}
	for stmt := range strings.SplitSeq(strings.Join(lines, ""), ";") {
		if strings.TrimSpace(stmt) == "" {
			continue
		}
		left, right, ok := strings.Cut(stmt, "<")
		if !ok || strings.Contains(right, "<") {
			return nil, fmt.Errorf("lattice: %q is not of the form a, b < c, d", strings.TrimSpace(stmt))
		}
		for _, r := range names(right) {
			direct[r] = append(direct[r], names(left)...)
			if direct[r] == nil {
				direct[r] = []string{}
			}
		}
	}
	closed := map[string]map[string]bool{}
	var closeOver func(p string, path []string) error
	closeOver = func(p string, path []string) error {
		if slices.Contains(path, p) {
			return fmt.Errorf("lattice: cycle %s", strings.Join(append(path, p), " < "))
		}
		if closed[p] != nil {
			return nil
		}
		if direct[p] == nil {
			return fmt.Errorf("lattice: %s is on the left only", p)
		}
		all := map[string]bool{}
		for _, q := range direct[p] {
			if err := closeOver(q, append(path, p)); err != nil {
				return err
			}
			all[q] = true
			maps.Copy(all, closed[q])
		}
		closed[p] = all
		return nil
	}
	for p := range direct {
		if err := closeOver(p, nil); err != nil {
			return nil, err
		}
	}
	return closed, nil
}

func below(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

func belowAny(pkg string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return below(pkg, f) })
}

// home is the entry of the lattice that rules a package, and whether the
// package is an adapter (or a part of one) rather than the entry itself.
func home(pkg string, lattice map[string]map[string]bool) (entry string, adapter bool, ok bool) {
	for p := pkg; p != "."; p = path.Dir(p) {
		if lattice[p] != nil {
			entry = p
			break
		}
	}
	if entry == "" {
		return "", false, false
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(pkg, entry+"/"), "/")
	return entry, pkg != entry && first != "internal" && slices.Contains(ports, entry), true
}

// mayImport says why from must not import to, "" if it may.
func mayImport(from, to string, test bool, lattice map[string]map[string]bool) string {
	if isTestSupport(to) {
		if test || isTestSupport(from) {
			return ""
		}
		return "only tests may import it"
	}
	if test || belowAny(from, programs) || isTestSupport(from) {
		return ""
	}
	fromEntry, fromAdapter, ok := home(from, lattice)
	if !ok {
		return "the lattice does not name " + from
	}
	toEntry, toAdapter, ok := home(to, lattice)
	switch {
	case !ok:
		return "the lattice does not name " + to
	case toAdapter && (!fromAdapter || adapterName(from) != adapterName(to)):
		return "adapters are chosen in cmd/ only"
	case toEntry == fromEntry, lattice[fromEntry][toEntry]:
		return ""
	}
	allowed := slices.Sorted(maps.Keys(lattice[fromEntry]))
	if len(allowed) == 0 {
		return fromEntry + " is ground: it may import nothing of this module"
	}
	return fmt.Sprintf("%s may import only %s", fromEntry, strings.Join(allowed, ", "))
}

// adapterName is the first two elements: "diskcrypt/luks" of "diskcrypt/luks/internal/header".
func adapterName(pkg string) string {
	parts := strings.SplitN(pkg, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func TestImports(t *testing.T) {
	lattice, err := rules(lattice)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tree(t) {
		for _, spec := range f.ast.Imports {
			to, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			why := ""
			if to == module || strings.HasPrefix(to, module+"/") {
				why = mayImport(f.pkg, strings.TrimPrefix(strings.TrimPrefix(to, module), "/"), f.test, lattice)
			} else {
				why = mayImportBeyond(f.pkg, to, f.test)
			}
			if why != "" {
				t.Errorf("%s: %s must not import %s: %s", f.at(spec.Pos()), f.pkg, to, why)
			}
		}
	}
}

// mayImportBeyond says why pkg must not import a package that is not ours, "" if it may.
func mayImportBeyond(pkg, to string, test bool) string {
	for _, rule := range imports {
		exact := !strings.Contains(rule.prefix, ".") && !slices.Contains(withChildren, rule.prefix)
		if to != rule.prefix && (exact || !strings.HasPrefix(to, strings.TrimSuffix(rule.prefix, "/")+"/")) {
			continue
		}
		if test || slices.Contains(rule.who, "*") || belowAny(pkg, rule.who) ||
			isTestSupport(pkg) && slices.Contains(rule.who, "tests") {
			return ""
		}
		who := "nobody"
		if len(rule.who) > 0 {
			who = "only " + strings.Join(rule.who, ", ")
		}
		return fmt.Sprintf("%s may: %s", who, rule.why)
	}
	if first, _, _ := strings.Cut(to, "/"); strings.Contains(first, ".") {
		return "a module of others needs an entry in `imports` that says who may have it, and why"
	}
	return ""
}

func TestOnlyProgramsReadTheEnvironment(t *testing.T) {
	for _, f := range tree(t) {
		if f.test || belowAny(f.pkg, programs) || isTestSupport(f.pkg) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(environment, x.Name+"."+sel.Sel.Name) {
				t.Errorf("%s: %s.%s: configuration is read in cmd/ and handed down", f.at(n.Pos()), x.Name, sel.Sel.Name)
			}
			return true
		})
	}
}

// hold checks one size against its limit and the exceptions.
func hold(t *testing.T, seen map[string]bool, what string, size, limit int) {
	t.Helper()
	seen[what] = true
	was, excepted := exceptions[what]
	switch {
	case excepted && size <= limit:
		t.Errorf("%s: %d fits now: take it out of exceptions", what, size)
	case excepted && size > was:
		t.Errorf("%s: %d, grew from %d, which was more than %d already", what, size, was, limit)
	case !excepted && size > limit:
		t.Errorf("%s: %d is more than %d: find the part that has a name of its own", what, size, limit)
	}
}

func TestSizes(t *testing.T) {
	seen := map[string]bool{}
	packages := map[string]int{}
	for _, f := range tree(t) {
		hold(t, seen, f.path, f.lines, maxFileLines)
		if !f.test {
			packages[f.pkg] += f.lines
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if i, ok := spec.Type.(*ast.InterfaceType); ok {
					hold(t, seen, f.pkg+"."+spec.Name.Name, methods(i), maxInterfaceMethods)
				}
			}
			return true
		})
	}
	for pkg, lines := range packages {
		hold(t, seen, pkg, lines, maxPackageLines)
	}
	for what := range exceptions {
		if !seen[what] {
			t.Errorf("%s is gone: take it out of exceptions", what)
		}
	}
}

// methods counts what an interface asks for itself; an embedded one counts as one.
func methods(i *ast.InterfaceType) int {
	n := 0
	for _, m := range i.Methods.List {
		n += max(1, len(m.Names))
	}
	return n
}

func TestNamesAndPackageComments(t *testing.T) {
	lattice, err := rules(lattice)
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]int{}
	ours := map[string]bool{}
	for _, f := range tree(t) {
		for _, name := range append(strings.Split(f.pkg, "/"), f.ast.Name.Name, strings.TrimSuffix(path.Base(f.path), ".go")) {
			if slices.Contains(emptyNames, name) {
				t.Errorf("%s: the name %q says nothing about what is inside", f.path, name)
			}
		}
		if f.test {
			continue
		}
		ours[f.pkg] = true
		if _, _, ok := home(f.pkg, lattice); !ok && !belowAny(f.pkg, programs) && !isTestSupport(f.pkg) {
			t.Errorf("%s: the lattice does not name %s", f.path, f.pkg)
		}
		if f.ast.Doc == nil {
			continue
		}
		comments[f.pkg]++
		begin := "Package " + f.ast.Name.Name + " "
		if f.ast.Name.Name == "main" {
			begin = "Command " + path.Base(f.pkg) + " "
			if f.pkg == "bench" {
				begin = "Command bench "
			}
		}
		if !strings.HasPrefix(strings.ReplaceAll(f.ast.Doc.Text(), "\n", " "), begin) {
			t.Errorf("%s: the package comment does not begin with %q", f.path, strings.TrimSpace(begin))
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(ours)) {
		if comments[pkg] != 1 {
			t.Errorf("%s has %d package comments, not one", pkg, comments[pkg])
		}
	}
}

// The rules themselves must be able to fail.
func TestRulesBite(t *testing.T) {
	lattice, err := rules(lattice)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		from, to string
		test     bool
		allowed  bool
	}{
		{"disk", "envelope", false, false},
		{"disk", "store", false, false},
		{"repository", "store", false, true},
		{"repository", "store/localdir", false, false},
		{"repository", "store/localdir", true, true},
		{"repository", "repository/internal/tree", false, true},
		{"repository", "custody", false, false},
		{"repository", "catalog", false, false},
		{"restore", "catalog", false, false},
		{"backup", "blockstack", false, true}, // through diskcrypt
		{"backup", "diskcrypt/luks", false, false},
		{"cli", "api", false, true},
		{"cli", "server", false, false},
		{"server", "catalog/sqlite", false, false},
		{"catalog/sqlite", "catalog", false, true},
		{"catalog/sqlite", "disk", false, true},
		{"catalog/sqlite", "repository", false, false},
		{"catalog", "catalog/sqlite", false, false},
		{"diskcrypt/luks/luksformat", "diskcrypt/luks/internal/header", false, true},
		{"diskcrypt/luks", "diskcrypt/bitlocker", false, false},
		{"diskcrypt/luks", "diskcrypt/internal/dmcrypt", false, true},
		{"cmd/lockstep", "catalog/sqlite", false, true},
		{"cmd/lockstep", "store/storetest", false, false},
		{"custody", "custody/prover", false, false},
		{"repository", "internal/judge", false, false},
		{"repository", "internal/judge", true, true},
		{"unheard", "disk", false, false},
	} {
		if why := mayImport(k.from, k.to, k.test, lattice); (why == "") != k.allowed {
			t.Errorf("%s → %s: %q, want allowed %v", k.from, k.to, why, k.allowed)
		}
	}
	for _, k := range []struct {
		pkg, to string
		test    bool
		allowed bool
	}{
		{"repository", "fmt", false, true},
		{"catalog", "database/sql", false, false},
		{"catalog/sqlite", "database/sql", false, true},
		{"catalog/sqlite", "modernc.org/sqlite/lib", false, true},
		{"server", "modernc.org/sqlite", false, false},
		{"disk", "golang.org/x/sys/unix", false, true},
		{"disk", "golang.org/x/term", false, false},
		{"disk", "log/slog", false, true},
		{"disk", "log", false, false},
		{"disk", "math/rand/v2", false, false},
		{"disk", "example.com/new", false, false},
		{"store/storetest", "testing", false, true},
		{"store", "testing", false, false},
	} {
		if why := mayImportBeyond(k.pkg, k.to, k.test); (why == "") != k.allowed {
			t.Errorf("%s → %s: %q, want allowed %v", k.pkg, k.to, why, k.allowed)
		}
	}
	for _, bad := range []string{"a < b; b < a; ", "a b", "a < b < c", "nowhere < b"} {
		if _, err := rules(bad); err == nil {
			t.Errorf("lattice %q is taken", bad)
		}
	}
}
