package browse

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// GetOptions of Get.
type GetOptions struct {
	Force  bool // replace files that are there
	Owners bool // give files to their owners and restore all mode bits; wants root
}

// GetReport is what was written, and what was not.
type GetReport struct {
	Files, Dirs, Links int64
	Bytes              int64 // of content, holes left out
	Problems           []Problem
	Omitted            int64 // problems beyond those listed
}

// Get copies the file or tree at name into to, a folder of this machine, under
// its own name, and returns that name. Nothing is written outside of to,
// whatever names and links the file system has; nothing is written over unless
// o.Force is set. Modes, times, holes, symbolic and hard links are restored;
// set-user-ID and set-group-ID only with the owners. Devices, sockets and pipes
// are left out as problems.
func (f *FS) Get(ctx context.Context, to *os.Root, name string, o GetOptions) (*GetReport, string, error) {
	at, err := f.find(name, true)
	if err != nil {
		return nil, "", err
	}
	base := "root"
	if len(at.names) > 0 {
		base = at.names[len(at.names)-1]
	}
	g := getting{f: f, to: to, o: o, report: &GetReport{}, first: map[uint64]string{}}
	prefix := at.path()
	err = f.Walk(ctx, name, func(n Node) error {
		local := path.Join(base, strings.TrimPrefix(n.Path, prefix))
		err := g.put(ctx, n, local)
		var unread Problem
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &unread):
			g.problem(unread)
		case n.Path != prefix && g.only(err):
			g.problem(Problem{n.Path, err})
		default:
			return fmt.Errorf("write %s: %w", local, err)
		}
		if n.Info.Type == Dir {
			return fs.SkipDir
		}
		return nil
	}, g.problem)
	// The times of directories, after what is in them was written; modes too, for they may forbid that.
	for i := len(g.dirs) - 1; i >= 0 && err == nil; i-- {
		err = g.finish(g.dirs[i].local, g.dirs[i].info)
	}
	return g.report, base, err
}

type getting struct {
	f      *FS
	to     *os.Root
	o      GetOptions
	report *GetReport
	first  map[uint64]string
	dirs   []madeDir
}

type madeDir struct {
	local string
	info  Info
}

func (g *getting) problem(p Problem) {
	if len(g.report.Problems) >= maxProblems {
		g.report.Omitted++
		return
	}
	g.report.Problems = append(g.report.Problems, p)
}

// only says whether an error of this machine is about one file, which does not
// keep the others from being written: it cannot have such a name or such a
// link, or two files want one name, as where case does not count.
func (g *getting) only(err error) bool {
	if errors.Is(err, fs.ErrExist) {
		// What was there before is a refusal. Without Force the folder on top is new: nothing was in it.
		return !g.o.Force
	}
	for _, e := range []error{syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EILSEQ, syscall.ENOENT, syscall.EFBIG} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// put writes one file. A Problem is what keeps it from being read; any other
// error is of this machine.
func (g *getting) put(ctx context.Context, n Node, local string) error {
	if _, err := filepath.Localize(local); err != nil {
		return Problem{n.Path, errors.New("this system cannot have such a name")}
	}
	switch n.Info.Type {
	case Dir:
		err := g.to.Mkdir(local, 0o700)
		if errors.Is(err, fs.ErrExist) && g.o.Force {
			st, serr := g.to.Lstat(local)
			if serr == nil && st.IsDir() {
				err = nil
			}
		}
		if err != nil {
			return err
		}
		g.dirs = append(g.dirs, madeDir{local, n.Info})
		g.report.Dirs++
		return nil
	case Symlink:
		target, err := g.f.fs.ReadLink(n.Info.ID)
		if err != nil {
			return Problem{n.Path, err}
		}
		if err := g.place(local, func(as string) error { return g.to.Symlink(target, as) }); err != nil {
			return err
		}
		g.report.Links++
		return g.own(local, n.Info)
	case Regular:
		if first, ok := g.first[n.Info.ID]; ok {
			g.report.Links++
			return g.place(local, func(as string) error { return g.to.Link(first, as) })
		}
		file, err := g.f.fs.Open(n.Info.ID)
		if err != nil {
			return Problem{n.Path, err}
		}
		var unread error
		err = g.place(local, func(as string) error {
			unread, err = g.write(ctx, as, file)
			return errors.Join(unread, err)
		})
		if unread != nil && ctx.Err() == nil {
			return Problem{n.Path, unread}
		}
		if err != nil {
			return err
		}
		if n.Info.Links > 1 {
			g.first[n.Info.ID] = local
		}
		g.report.Files++
		return g.finish(local, n.Info)
	}
	return Problem{n.Path, errors.New("neither a file, a directory nor a link: left out")}
}

// place makes a file under its name, or, where one may be replaced, beside it
// and then in its place.
func (g *getting) place(local string, as func(name string) error) error {
	_, err := g.to.Lstat(local)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return as(local)
	case err != nil:
		return err
	case !g.o.Force:
		return fs.ErrExist
	}
	beside := path.Join(path.Dir(local), ".lockstep-"+rand.Text())
	if err := as(beside); err != nil {
		return err
	}
	if err := g.to.Rename(beside, local); err != nil {
		return errors.Join(err, g.to.Remove(beside))
	}
	return nil
}

// write writes content and leaves holes where it has them. What was written of a
// file that cannot be read to its end is removed.
func (g *getting) write(ctx context.Context, local string, file File) (unread, err error) {
	w, err := g.to.OpenFile(local, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, w.Close())
		if unread != nil || err != nil {
			err = errors.Join(err, g.to.Remove(local))
		}
	}()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < file.Size(); {
		start, end := file.NextData(off)
		for off = start; off < end; {
			if err := ctx.Err(); err != nil {
				return err, nil
			}
			b := buf[:min(int64(len(buf)), end-off)]
			if n, err := file.ReadAt(b, off); n < len(b) {
				return fmt.Errorf("at byte %d: %w", off+int64(n), err), nil
			}
			if _, err := w.WriteAt(b, off); err != nil {
				return nil, err
			}
			off += int64(len(b))
			g.report.Bytes += int64(len(b))
		}
	}
	return nil, w.Truncate(file.Size())
}

func (g *getting) own(local string, i Info) error {
	if !g.o.Owners || !g.f.Facts().Owners {
		return nil
	}
	return g.to.Lchown(local, int(i.UID), int(i.GID))
}

// finish restores owner, mode and times.
func (g *getting) finish(local string, i Info) error {
	if err := g.own(local, i); err != nil {
		return err
	}
	mode := fs.FileMode(i.Mode & 0o777)
	if g.o.Owners {
		for bit, m := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
			if i.Mode&bit != 0 {
				mode |= m
			}
		}
	}
	if err := g.to.Chmod(local, mode); err != nil {
		return err
	}
	if i.Modified.IsZero() {
		return nil
	}
	accessed := i.Accessed
	if accessed.IsZero() {
		accessed = time.Now()
	}
	return g.to.Chtimes(local, accessed, i.Modified)
}
