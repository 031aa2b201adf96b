package browse

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// TarReport is what a tar stream holds and lacks.
type TarReport struct {
	Files, Dirs, Links int64 // Links: symbolic and hard ones
	Bytes              int64 // of content
	Problems           []Problem
	Omitted            int64 // problems beyond those listed
}

const maxProblems = 1000

func (r *TarReport) problem(p Problem) {
	if len(r.Problems) >= maxProblems {
		r.Omitted++
		return
	}
	r.Problems = append(r.Problems, p)
}

// Tar writes the file or tree at name as a tar stream (PAX), names relative to
// the root of the file system. It has owners, modes, times, links of both kinds,
// devices and extended attributes; holes are zeros in it. What cannot be read
// is left out, or ends in zeros where that shows late, and is a problem of the
// report. An error is w's, or ctx's.
func (f *FS) Tar(ctx context.Context, w io.Writer, name string) (*TarReport, error) {
	r := &TarReport{}
	tw := tar.NewWriter(w)
	t := tarStream{f: f, tw: tw, report: r, first: map[uint64]string{}, buf: make([]byte, 1<<20)}
	if err := f.Walk(ctx, name, func(n Node) error { return t.add(ctx, n) }, r.problem); err != nil {
		return r, err
	}
	return r, tw.Close()
}

type tarStream struct {
	f      *FS
	tw     *tar.Writer
	report *TarReport
	first  map[uint64]string // files of several names → the first of them
	buf    []byte
}

func (t *tarStream) add(ctx context.Context, n Node) error {
	name := strings.TrimPrefix(n.Path, "/")
	if name == "" {
		name = "."
	}
	i := n.Info
	h := &tar.Header{
		Format: tar.FormatPAX, Name: name, Mode: int64(i.Mode), Uid: int(i.UID), Gid: int(i.GID),
		ModTime: i.Modified, AccessTime: i.Accessed, ChangeTime: i.Changed, PAXRecords: map[string]string{},
	}
	var content File
	switch i.Type {
	case Dir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		t.report.Dirs++
	case Symlink:
		target, err := t.f.fs.ReadLink(i.ID)
		if err != nil {
			t.report.problem(Problem{n.Path, err})
			return nil
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		t.report.Links++
	case Fifo:
		h.Typeflag = tar.TypeFifo
	case CharDevice, BlockDevice:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(i.Major), int64(i.Minor)
		if i.Type == BlockDevice {
			h.Typeflag = tar.TypeBlock
		}
	case Regular:
		if first, ok := t.first[i.ID]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			t.report.Links++
			break
		}
		file, err := t.f.fs.Open(i.ID)
		if err != nil {
			t.report.problem(Problem{n.Path, err})
			return nil
		}
		if i.Links > 1 {
			t.first[i.ID] = name
		}
		content = file
		h.Typeflag, h.Size = tar.TypeReg, file.Size()
		t.report.Files++
	case Socket:
		return nil // nothing that could be restored
	default:
		t.report.problem(Problem{n.Path, errors.New("a file of a kind that tar does not have")})
		return nil
	}
	if h.Typeflag != tar.TypeLink {
		t.xattrs(h, n)
	}
	if err := t.tw.WriteHeader(h); err != nil {
		if errors.Is(err, tar.ErrHeader) {
			t.report.problem(Problem{n.Path, err})
			return nil
		}
		return fmt.Errorf("write tar: %w", err)
	}
	if content == nil {
		return nil
	}
	return t.content(ctx, n.Path, content)
}

// archive/tar gives up on more than 1 MiB of records of one file.
const maxRecords = 1<<20 - 16<<10

func (t *tarStream) xattrs(h *tar.Header, n Node) {
	list, err := t.f.fs.Xattrs(n.Info.ID)
	if err != nil {
		t.report.problem(Problem{n.Path, fmt.Errorf("extended attributes: %w", err)})
	}
	total := len(h.Name) + len(h.Linkname) + 1024
	for _, x := range list {
		if x.Name == "" || strings.ContainsAny(x.Name, "=\x00") {
			t.report.problem(Problem{n.Path, fmt.Errorf("extended attribute %q cannot be in a tar stream", x.Name)})
			continue
		}
		if total += len(x.Name) + len(x.Value) + 64; total > maxRecords {
			t.report.problem(Problem{n.Path, fmt.Errorf("extended attribute %q left out: a file in a tar stream has %d bytes of them at most", x.Name, maxRecords)})
			total -= len(x.Name) + len(x.Value) + 64
			continue
		}
		h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
	}
}

func (t *tarStream) content(ctx context.Context, name string, file File) error {
	bad := false
	for off, size := int64(0), file.Size(); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := t.buf[:min(int64(len(t.buf)), size-off)]
		if start, _ := file.NextData(off); start > off || bad {
			if !bad {
				b = b[:min(int64(len(b)), start-off)]
			}
			clear(b)
		} else if n, err := file.ReadAt(b, off); n < len(b) {
			t.report.problem(Problem{name, fmt.Errorf("from byte %d on zeros in the tar stream: %w", off+int64(n), err)})
			clear(b[n:])
			bad = true
		}
		if _, err := t.tw.Write(b); err != nil {
			return fmt.Errorf("write tar: %w", err)
		}
		off += int64(len(b))
		t.report.Bytes += int64(len(b))
	}
	return nil
}

// Cat writes the content of a regular file.
func (f *FS) Cat(ctx context.Context, w io.Writer, name string) (int64, error) {
	file, err := f.Open(name)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(w, io.NewSectionReader(stopping{ctx, file}, 0, file.Size()))
	if err != nil {
		return n, fmt.Errorf("read %s: %w", path.Clean(name), err)
	}
	return n, nil
}

// stopping is a file that is not read after its context ended.
type stopping struct {
	ctx context.Context
	File
}

func (s stopping) ReadAt(p []byte, off int64) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.File.ReadAt(p, off)
}
