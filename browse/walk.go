package browse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Node is a file found by a walk.
type Node struct {
	Path string // from the root, "/etc/passwd"
	Info Info
}

// Problem is a file that could not be read, wholly or in part.
type Problem struct {
	Path string
	Err  error
}

func (p Problem) Error() string { return fmt.Sprintf("%s: %v", p.Path, p.Err) }

// Unwrap is the reason.
func (p Problem) Unwrap() error { return p.Err }

// Walk calls fn for the file at name and, if it is a directory, for all below
// it, each directory before what is in it. Symbolic links are followed up to
// name, not below it. What cannot be read is given to problem, and the walk
// goes on. fn's error ends it; fs.SkipDir leaves a directory out.
func (f *FS) Walk(ctx context.Context, name string, fn func(Node) error, problem func(Problem)) error {
	at, err := f.find(name, true)
	if err != nil {
		return err
	}
	info, err := f.fs.Stat(at.id())
	if err != nil {
		return err
	}
	w := walk{f: f, fn: fn, problem: problem, seen: map[uint64]bool{}}
	err = w.visit(ctx, Node{Path: at.path(), Info: info}, 0)
	if errors.Is(err, fs.SkipDir) {
		return nil
	}
	return err
}

type walk struct {
	f       *FS
	fn      func(Node) error
	problem func(Problem)
	seen    map[uint64]bool // directories; one has one parent, or it is a loop
}

func (w *walk) visit(ctx context.Context, n Node, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.Info.Type == Dir {
		if w.seen[n.Info.ID] {
			w.problem(Problem{n.Path, errors.New("a directory that was seen elsewhere")})
			return nil
		}
		w.seen[n.Info.ID] = true
	}
	if err := w.fn(n); err != nil || n.Info.Type != Dir {
		return err
	}
	if depth >= maxDepth {
		w.problem(Problem{n.Path, fmt.Errorf("deeper than %d directories", maxDepth)})
		return nil
	}
	var subdirs []Node
	var failed error
	err := w.f.list(n.Info.ID, func(e Entry) bool {
		p := path.Join(n.Path, e.Name)
		info, err := w.f.fs.Stat(e.ID)
		if err != nil {
			w.problem(Problem{p, err})
			failed = ctx.Err() // a directory may hold nothing but such
			return failed == nil
		}
		if info.Type == Dir {
			subdirs = append(subdirs, Node{p, info})
			return true
		}
		failed = w.visit(ctx, Node{p, info}, depth+1)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	if err != nil {
		w.problem(Problem{n.Path, err})
	}
	for _, d := range subdirs {
		if err := w.visit(ctx, d, depth+1); err != nil && !errors.Is(err, fs.SkipDir) {
			return err
		}
	}
	return nil
}

// Find calls fn for the files at or below name that match a pattern as of
// path.Match: their names, or their whole paths if the pattern has a slash.
func (f *FS) Find(ctx context.Context, name, pattern string, fn func(Node) error, problem func(Problem)) error {
	fold := func(s string) string { return s }
	if f.Facts().FoldCase {
		fold = strings.ToLower
	}
	pattern = fold(pattern)
	if _, err := path.Match(pattern, ""); err != nil {
		return fmt.Errorf("find %q: %w", pattern, err)
	}
	return f.Walk(ctx, name, func(n Node) error {
		against := fold(n.Path)
		if !strings.Contains(pattern, "/") {
			against = path.Base(against)
		}
		if ok, _ := path.Match(pattern, against); !ok {
			return nil
		}
		return fn(n)
	}, problem)
}

// Ls are the files of a directory by name, or the file itself.
func (f *FS) Ls(name string) ([]Node, []Problem, error) {
	at, err := f.find(name, true)
	if errors.Is(err, fs.ErrNotExist) { // a link that leads nowhere is a file too
		at, err = f.find(name, false)
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.fs.Stat(at.id())
	if err != nil {
		return nil, nil, err
	}
	if info.Type != Dir {
		return []Node{{at.path(), info}}, nil, nil
	}
	var nodes []Node
	var problems []Problem
	err = f.list(at.id(), func(e Entry) bool {
		p := path.Join(at.path(), e.Name)
		info, err := f.fs.Stat(e.ID)
		if err != nil {
			problems = append(problems, Problem{p, err})
			info = Info{ID: e.ID, Type: e.Type}
		}
		nodes = append(nodes, Node{p, info})
		return true
	})
	if err != nil {
		problems = append(problems, Problem{at.path(), err})
	}
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Path, b.Path) })
	return nodes, problems, nil
}
