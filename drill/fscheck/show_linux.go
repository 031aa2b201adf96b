package fscheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/drill"
)

const maxRequest = 1 << 20

// show makes a scratch disk a file in a folder of its own.
func show(on *drill.Scratch) (path string, unmount func() error, err error) {
	dir, err := os.MkdirTemp("", "lockstep-drill-")
	if err != nil {
		return "", nil, err
	}
	server, err := fs.Mount(dir, &folder{file: &file{on: on}}, &fs.Options{MountOptions: fuse.MountOptions{
		Options: []string{"nosuid", "nodev", "noexec"}, FsName: "lockstep-drill", Name: "lockstep", DirectMount: true, DisableXAttrs: true,
		MaxWrite: maxRequest, MaxReadAhead: maxRequest,
	}})
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("show it as a file: %w: FUSE: %w", drill.ErrNoTool, err), os.Remove(dir))
	}
	return filepath.Join(dir, name), func() error {
		if err := server.Unmount(); err != nil {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", dir, err)
			}
		}
		return os.Remove(dir)
	}, nil
}

const name = "filesystem"

type folder struct {
	fs.Inode
	file *file
}

// OnAdd makes the file.
func (d *folder) OnAdd(ctx context.Context) {
	d.AddChild(name, d.NewPersistentInode(ctx, d.file, fs.StableAttr{Mode: fuse.S_IFREG, Ino: 2}), false)
}

// file is the scratch disk. Nothing of it is to stay in the page cache.
type file struct {
	fs.Inode
	on *drill.Scratch
}

// Getattr describes it.
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Nlink, out.Size = fuse.S_IFREG|0o600, 1, uint64(f.on.Size())
	out.Blocks = out.Size / 512
	out.Uid, out.Gid = uint32(os.Geteuid()), uint32(os.Getegid())
	return 0
}

// Setattr keeps the size.
func (f *file) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && int64(size) != f.on.Size() {
		return syscall.EPERM
	}
	return f.Getattr(ctx, h, out)
}

// Open opens it.
func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Read reads it.
func (f *file) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := f.on.ReadAt(p, off)
	if n < len(p) && err != nil && off+int64(n) < f.on.Size() {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(p[:n]), 0
}

// Write writes to memory.
func (f *file) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	n, err := f.on.WriteAt(p, off)
	switch {
	case errors.Is(err, drill.ErrScratchFull):
		return uint32(n), syscall.ENOSPC
	case err != nil:
		return uint32(n), syscall.EIO
	}
	return uint32(n), 0
}

// Fsync has nothing to do.
func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }
