package drill

import (
	"bytes"
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lockstep-backup/lockstep/browse"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Sample says how much of each file system is read. The files are those with the
// least hashes of seed and inode number: the same seed reads the same files.
type Sample struct {
	Files int   // at most so many of each file system; 0 = none are read
	Bytes int64 // of each file system
	Seed  [16]byte
}

// mostFiles bounds the walk over one file system.
const mostFiles = 20_000_000

// picked is a file of the sample.
type picked struct {
	order [sha256.Size]byte
	node  browse.Node
}

// picks has the greatest on top, so that it is the first to go.
type picks []picked

func (p picks) Len() int           { return len(p) }
func (p picks) Less(i, j int) bool { return bytes.Compare(p[i].order[:], p[j].order[:]) > 0 }
func (p picks) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *picks) Push(x any)        { *p = append(*p, x.(picked)) }
func (p *picks) Pop() any {
	last := (*p)[len(*p)-1]
	*p = (*p)[:len(*p)-1]
	return last
}

var errEnough = errors.New("there are more files")

// sample reads files to their ends.
func (r *run) sample(ctx context.Context, d unlock.Device, fs *browse.FS) error {
	began := r.Now()
	s := custody.DrillStep{Kind: custody.DrillSample, Disk: d.Disk, Object: d.Name, Outcome: custody.DrillSkipped, Detail: "no sample was asked for"}
	if r.Sample.Files <= 0 {
		r.step(began, s)
		return nil
	}
	r.Tell("reading files of %s %s", d.Disk, d.Name)
	total, problems := 0, 0
	var chosen picks
	err := fs.Walk(ctx, "/", func(n browse.Node) error {
		if n.Info.Type != browse.Regular {
			return nil
		}
		if total++; total > mostFiles {
			return errEnough
		}
		p := picked{order: r.order(n.Info.ID), node: n}
		if len(chosen) < r.Sample.Files {
			heap.Push(&chosen, p)
		} else if bytes.Compare(p.order[:], chosen[0].order[:]) < 0 {
			chosen[0] = p
			heap.Fix(&chosen, 0)
		}
		return nil
	}, func(p browse.Problem) {
		problems++
		r.Tell("%v", p)
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, errEnough) {
		s.Outcome, s.Detail = custody.DrillFailed, "the root folder cannot be read"
		r.Tell("%v", err)
		r.step(began, s)
		return nil
	}
	slices.SortFunc(chosen, func(a, b picked) int { return bytes.Compare(a.order[:], b.order[:]) })
	read, failed, left, firstBad, err := r.readAll(ctx, fs, chosen, &s)
	if err != nil {
		return err
	}
	s.Files = int64(read)
	s.Detail = fmt.Sprintf("%d of %s, seed %s", read, count(total, "file"), hex.EncodeToString(r.Sample.Seed[:]))
	s.Outcome = custody.DrillPassed
	if left > 0 {
		s.Detail += fmt.Sprintf("; %d larger ones left out for the limit of %d bytes", left, r.Sample.Bytes)
	}
	if read == 0 && failed == 0 && problems == 0 && total > 0 {
		s.Outcome = custody.DrillSkipped
	}
	if problems > 0 {
		s.Outcome, s.Detail = custody.DrillFailed, s.Detail+"; "+count(problems, "name")+" could not be followed"
	}
	if failed > 0 {
		s.Outcome, s.Detail = custody.DrillFailed, s.Detail+fmt.Sprintf("; %s could not be read, the first is inode %d", count(failed, "file"), firstBad)
	}
	r.step(began, s)
	return nil
}

func (r *run) order(inode uint64) [sha256.Size]byte {
	var b [24]byte
	copy(b[:], r.Sample.Seed[:])
	binary.BigEndian.PutUint64(b[16:], inode)
	return sha256.Sum256(b[:])
}

// readAll reads the files one after the other, and leaves out what is larger
// than what the limit leaves.
func (r *run) readAll(ctx context.Context, fs *browse.FS, files []picked, s *custody.DrillStep) (read, failed, left int, firstBad uint64, err error) {
	buf := make([]byte, 1<<20)
	defer envelope.Wipe(buf)
	for _, p := range files {
		if p.node.Info.Size > r.Sample.Bytes-s.Bytes {
			left++
			continue
		}
		n, ferr := readFile(ctx, fs, p.node, buf)
		if ctx.Err() != nil {
			return read, failed, left, firstBad, ctx.Err()
		}
		s.Bytes += n
		if ferr != nil {
			if failed++; failed == 1 {
				firstBad = p.node.Info.ID
			}
			r.Tell("%s: %v", p.node.Path, ferr)
			continue
		}
		read++
	}
	return read, failed, left, firstBad, nil
}

// readFile reads one to its end.
func readFile(ctx context.Context, fs *browse.FS, n browse.Node, buf []byte) (read int64, err error) {
	f, err := fs.Open(n.Path)
	if err != nil {
		return 0, err
	}
	for at := int64(0); at < f.Size(); {
		if err := ctx.Err(); err != nil {
			return read, err
		}
		// Holes are not stored, and cost nothing.
		start, end := f.NextData(at)
		if start >= f.Size() || end <= start {
			break
		}
		want := int(min(end-start, int64(len(buf))))
		got, err := f.ReadAt(buf[:want], start)
		read += int64(got)
		if got < want {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return read, err
		}
		at = start + int64(want)
	}
	return read, nil
}
