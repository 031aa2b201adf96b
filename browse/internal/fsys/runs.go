package fsys

import (
	"bytes"
	"io"
	"sort"
)

// Run is Length bytes of a file at At, which are at From of the volume.
type Run struct{ At, Length, From int64 }

// Runs collects the runs of a file in ascending order and joins neighbours.
type Runs []Run

// Add appends a run; what is not added is a hole.
func (r *Runs) Add(n Run) error {
	if n.Length == 0 {
		return nil
	}
	const most = 1 << 62
	if n.At < 0 || n.Length < 0 || n.From < 0 || n.At > most || n.Length > most || n.From > most {
		return Corrupt("a stretch of a file at %d has length %d and place %d", n.At, n.Length, n.From)
	}
	if k := len(*r); k > 0 {
		last := &(*r)[k-1]
		switch {
		case n.At < last.At+last.Length:
			return Corrupt("two stretches of a file overlap at %d", n.At)
		case n.At == last.At+last.Length && n.From == last.From+last.Length:
			last.Length += n.Length
			return nil
		}
	}
	if len(*r) >= MaxRuns {
		return Unsupported("a file in more than %d pieces", MaxRuns)
	}
	*r = append(*r, n)
	return nil
}

type runFile struct {
	r    io.ReaderAt
	size int64
	runs Runs
}

// NewFile is a file of size bytes whose content lies in runs of r; what
// they have behind size is not the file's.
func NewFile(r io.ReaderAt, size int64, runs Runs) File {
	return &runFile{r: r, size: size, runs: runs}
}

func (f *runFile) Size() int64 { return f.size }

// from is the first run that ends behind off.
func (f *runFile) from(off int64) int {
	return sort.Search(len(f.runs), func(i int) bool { return f.runs[i].At+f.runs[i].Length > off })
}

func (f *runFile) NextData(off int64) (int64, int64) {
	i := f.from(max(off, 0))
	if i == len(f.runs) {
		return f.size, f.size
	}
	start, end := max(off, f.runs[i].At), f.runs[i].At+f.runs[i].Length
	for i++; i < len(f.runs) && f.runs[i].At == end; i++ {
		end += f.runs[i].Length
	}
	return min(start, f.size), min(end, f.size)
}

func (f *runFile) ReadAt(p []byte, off int64) (int, error) {
	return ReadPieces(p, off, f.size, func(p []byte, off int64) (int, error) {
		i := f.from(off)
		if i == len(f.runs) {
			clear(p)
			return len(p), nil
		}
		run := f.runs[i]
		if off < run.At {
			n := min(int64(len(p)), run.At-off)
			clear(p[:n])
			return int(n), nil
		}
		n := min(int64(len(p)), run.At+run.Length-off)
		return f.r.ReadAt(p[:n], run.From+off-run.At)
	})
}

// ReadPieces does ReadAt's bookkeeping for a file of size bytes: piece fills
// the beginning of p and says how much it did.
func ReadPieces(p []byte, off, size int64, piece func(p []byte, off int64) (int, error)) (int, error) {
	if off < 0 {
		return 0, Corrupt("read at %d", off)
	}
	if off >= size {
		return 0, io.EOF
	}
	short := int64(len(p)) > size-off
	if short {
		p = p[:size-off]
	}
	done := 0
	for done < len(p) {
		n, err := piece(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
		if n <= 0 {
			return done, io.ErrNoProgress
		}
	}
	if short {
		return done, io.EOF
	}
	return done, nil
}

type bytesFile struct {
	*bytes.Reader
}

// BytesFile is a small file that is in memory, with zeros up to size.
func BytesFile(b []byte, size int64) (File, error) {
	if size < 0 || size > MaxRead {
		return nil, Corrupt("%d bytes of content inside metadata", size)
	}
	all := make([]byte, size)
	copy(all, b)
	return bytesFile{bytes.NewReader(all)}, nil
}

func (f bytesFile) NextData(off int64) (int64, int64) {
	return min(max(off, 0), f.Size()), f.Size()
}

// Text is what precedes the first zero byte.
func Text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// Find is the run that covers off.
func (r Runs) Find(off int64) (Run, bool) {
	i := sort.Search(len(r), func(i int) bool { return r[i].At+r[i].Length > off })
	if i == len(r) || r[i].At > off {
		return Run{}, false
	}
	return r[i], true
}

// Clip ends the runs at size, in place: what is behind it is a hole.
func (r Runs) Clip(size int64) Runs {
	r = r[:sort.Search(len(r), func(i int) bool { return r[i].At >= size })]
	if k := len(r); k > 0 {
		r[k-1].Length = min(r[k-1].Length, size-r[k-1].At)
	}
	return r
}
