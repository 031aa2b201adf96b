package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/export"
)

const (
	maxRead     = 1 << 20
	maxInFlight = 64 << 20
	// forever is how long the kernel may keep what never changes.
	forever = 24 * time.Hour
)

// Mount is a recovery point that is mounted.
type Mount struct {
	dir    string
	server *fuse.Server
	ended  chan struct{}
	stop   context.CancelFunc
	counts sync.WaitGroup
}

// New mounts a recovery point on an empty folder. Only the user who mounts it
// can read it.
func New(p *export.Point, dir string, o Options) (*Mount, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkFolder(dir); err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w: %w", dir, err, ErrUnavailable)
	}
	_ = f.Close()
	text, err := about(p)
	if err != nil {
		return nil, err
	}
	root := &folder{times: p.Manifest.Time}
	root.add("point.json", &file{content: text, size: int64(len(text)), times: root.times})
	m := &Mount{dir: dir, ended: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	var disks []*file
	for _, d := range p.Disks {
		x := &file{name: FileName(d.ID), disk: d, size: d.Size(), times: root.times, log: o.Log}
		x.allocated.Store(-1)
		root.add(x.name, x)
		disks = append(disks, x)
	}
	for _, d := range p.Plain {
		x := &file{name: PlainName(d.ID), disk: d, size: d.Size(), times: root.times, log: o.Log}
		x.allocated.Store(x.size) // no holes
		root.add(x.name, x)
	}
	timeout := forever
	m.server, err = fs.Mount(dir, root, &fs.Options{
		EntryTimeout: &timeout, NegativeTimeout: &timeout,
		NullPermissions: true,
		Logger:          slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
		MountOptions: fuse.MountOptions{
			Options: []string{"ro", "default_permissions"}, FsName: "lockstep:" + p.Manifest.Point, Name: "lockstep",
			DirectMount: true, DisableXAttrs: true,
			MaxWrite: maxRead, MaxReadAhead: maxRead, MaxBackground: 32, MaxInflightRequestBytes: maxInFlight,
			Logger: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		},
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("mount on %s: %w: %w", dir, err, ErrUnavailable)
	}
	go func() { m.server.Wait(); close(m.ended) }()
	m.counts.Go(func() {
		for _, x := range disks {
			x.count(ctx)
		}
	})
	return m, nil
}

func checkFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = errors.New("the folder is not empty")
	}
	return err
}

// Ended is closed when nothing is mounted any more, whoever unmounted it.
func (m *Mount) Ended() <-chan struct{} { return m.ended }

// Unmount ends it. Where programs still have files open, the folder goes at
// once and they lose what they read from: lazy is true then.
func (m *Mount) Unmount() (lazy bool, err error) {
	m.stop()
	m.counts.Wait()
	select {
	case <-m.ended:
		return false, nil
	default:
	}
	if m.server.Unmount() == nil {
		<-m.ended
		return false, nil
	}
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
		return false, fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	return true, nil
}

// folder is the root.
type folder struct {
	fs.Inode
	times time.Time
	names []string
	files []*file
}

func (r *folder) add(name string, f *file) {
	r.names, r.files = append(r.names, name), append(r.files, f)
}

// OnAdd makes the files.
func (r *folder) OnAdd(ctx context.Context) {
	for i, f := range r.files {
		r.AddChild(r.names[i], r.NewPersistentInode(ctx, f, fs.StableAttr{Mode: fuse.S_IFREG, Ino: uint64(i) + 2}), false)
	}
}

// Getattr describes the folder.
func (r *folder) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	describe(&out.Attr, fuse.S_IFDIR|0o500, r.times)
	out.SetTimeout(forever)
	return 0
}

// Statfs describes the file system.
func (r *folder) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	describeAll(out)
	return 0
}

// describeAll: programs that read around the page cache take the block size for
// what they must align to.
func describeAll(out *fuse.StatfsOut) {
	out.Bsize, out.Frsize, out.NameLen = disk.PageSize, disk.PageSize, 255
}

func describe(a *fuse.Attr, mode uint32, t time.Time) {
	a.Mode, a.Nlink, a.Blksize = mode, 1, disk.PageSize
	a.Uid, a.Gid = uint32(os.Geteuid()), uint32(os.Getegid())
	a.SetTimes(&t, &t, &t)
}

// device is a disk of the recovery point, or plaintext.
type device interface {
	io.ReaderAt
	NextData(off int64) (disk.Range, error)
}

// file is a device, or a text in memory.
type file struct {
	fs.Inode
	name    string
	content []byte
	disk    device
	size    int64
	times   time.Time
	log     *slog.Logger
	// allocated is how much of a disk is not holes, -1 while that is counted.
	allocated atomic.Int64
}

// count finds out how much of the disk is data. A map of terabytes takes its time.
func (f *file) count(ctx context.Context) {
	var total int64
	for at := int64(0); ctx.Err() == nil; {
		r, err := f.disk.NextData(at)
		if errors.Is(err, io.EOF) {
			f.allocated.Store(total)
			return
		}
		if err != nil {
			f.log.Warn("holes cannot be told", "file", f.name, "error", err)
			return
		}
		total += r.Length
		at = r.End()
	}
}

// Getattr describes the file.
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	describe(&out.Attr, fuse.S_IFREG|0o400, f.times)
	out.Size = uint64(f.size)
	used, timeout := f.size, forever
	if f.disk != nil {
		if n := f.allocated.Load(); n >= 0 {
			used = n
		} else {
			timeout = time.Second // ask again
		}
	}
	out.Blocks = uint64(used+511) / 512
	out.SetTimeout(timeout)
	return 0
}

// Statfs is asked of whatever file a program has.
func (f *file) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	describeAll(out)
	return 0
}

// Open opens it for reading. The kernel may keep what it read: nothing changes.
func (f *file) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Read reads it.
func (f *file) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if f.disk == nil {
		off = min(off, f.size)
		return fuse.ReadResultData(f.content[off:min(off+int64(len(p)), f.size)]), 0
	}
	n, err := f.disk.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		f.log.Error("read from mounted file failed", "file", f.name, "offset", off, "length", len(p), "error", err)
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(p[:n]), 0
}

// Lseek finds data and holes.
func (f *file) Lseek(_ context.Context, _ fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	if off >= uint64(f.size) {
		return 0, syscall.ENXIO
	}
	if f.disk == nil {
		if whence == unix.SEEK_DATA {
			return off, 0
		}
		return uint64(f.size), 0
	}
	at := int64(off)
	for {
		r, err := f.disk.NextData(at)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			f.log.Error("find data of mounted file failed", "file", f.name, "offset", at, "error", err)
			return 0, syscall.EIO
		case whence == unix.SEEK_DATA && err != nil:
			return 0, syscall.ENXIO
		case whence == unix.SEEK_DATA:
			return uint64(r.Offset), 0
		case whence != unix.SEEK_HOLE:
			return 0, syscall.EINVAL
		case err != nil || r.Offset > at:
			return uint64(at), 0
		}
		if at = r.End(); at >= f.size {
			return uint64(f.size), 0
		}
	}
}
