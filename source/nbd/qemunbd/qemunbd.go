// Package qemunbd reads image files that are not raw, qcow2 with its chain,
// VMDK, VHD and VHDX, through a qemu-nbd that it starts for each.
//
// An image is hostile: its header may name other files of this host as parts of
// itself. So every file of a chain is looked at first and must lie where it is
// allowed to, and QEMU is told the whole chain, format by format, instead of
// asking the headers. Its invariant: QEMU opens no file that was not looked at
// here, guesses no format, and writes nothing.
package qemunbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	nbdclient "github.com/lockstep-backup/lockstep/nbd"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/source/nbd"
)

// Opener opens image files named by file URLs such as
// "file:///images/web01.qcow2?format=qcow2". Files that an image names must lie
// in its own folder, or in one named by &backing=DIR, which may be repeated.
type Opener struct {
	// Program is qemu-nbd; "" looks for it in the path.
	Program string
}

var _ source.Opener = Opener{}

// Formats are those that are read here.
var Formats = []string{disk.FormatQcow2, disk.FormatVMDK, disk.FormatVHD, disk.FormatVHDX}

const (
	startTime = 30 * time.Second
	pollTime  = 5 * time.Millisecond // between looks whether it listens
	maxChain  = 64                   // images that stand on each other
	maxSaid   = 4 << 10              // of what qemu-nbd says
)

// Open fails with source.ErrNotFound, source.ErrInUse (a running machine has
// the image open; unless opts.AllowLive), source.ErrDamaged (it is cut short or
// at odds with itself; not looked for with opts.AllowLive), and
// source.ErrUnsupported, which also stands for images that name what they may
// not.
func (o Opener) Open(ctx context.Context, spec string, opts source.Options) (source.Disk, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	path, query, err := disk.LocalPath(spec)
	if err != nil {
		return nil, fmt.Errorf("open source: %w: %w", source.ErrUnsupported, err)
	}
	c := chain{backing: query["backing"]}
	root, err := c.look(path, query.Get("format"))
	if err != nil {
		return nil, fmt.Errorf("open source %s: %w", path, err)
	}
	program := o.Program
	if program == "" {
		if program, err = exec.LookPath("qemu-nbd"); err != nil {
			return nil, fmt.Errorf("open source %s: %w: images of format %s are read through qemu-nbd, which is not installed here (Debian: qemu-utils)", path, source.ErrUnsupported, query.Get("format"))
		}
	}
	if !opts.AllowLive { // what is being written is at odds with itself all the time
		if err := root.vet(ctx); err != nil {
			return nil, fmt.Errorf("open source %s: %w", path, err)
		}
	}
	s, err := start(ctx, program, root.options(opts.AllowLive))
	if err != nil {
		return nil, fmt.Errorf("open source %s: %w", path, err)
	}
	if opts.AllowLive {
		return &Disk{Disk: nbd.New(s.client, path, source.ConsistencyNone), server: s}, nil // a file in use changes
	}
	return &Disk{Disk: nbd.New(s.client, path, source.ConsistencyCrash), server: s, files: c.files}, nil
}

// Disk is an open image.
type Disk struct {
	*nbd.Disk
	server *server
	files  []file
}

// Check says whether every file of the image is still what was opened.
func (d *Disk) Check() error {
	for _, f := range d.files {
		now, err := os.Stat(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("check source %s: %w", f.path, source.ErrNotFound)
		}
		if err != nil {
			return fmt.Errorf("check source: %w", err)
		}
		if !os.SameFile(now, f.info) || now.Size() != f.info.Size() || !now.ModTime().Equal(f.info.ModTime()) {
			return fmt.Errorf("check source %s: it was changed or replaced meanwhile: %w", f.path, source.ErrSizeChanged)
		}
	}
	return d.Disk.Check()
}

// Changed never knows.
func (d *Disk) Changed(context.Context, string) ([]disk.Range, bool, string, error) {
	return nil, false, "image files have no changed-block tracking", nil
}

// Close ends the server.
func (d *Disk) Close() error { return errors.Join(d.Disk.Close(), d.server.stop()) }

// options are what QEMU is told of an image, with everything below it.
func (i *image) options(live bool) map[string]any {
	f := map[string]any{"driver": "file", "filename": i.path}
	if live {
		// A machine that runs holds locks; this reads past them.
		f["locking"] = "off"
	}
	o := map[string]any{"driver": i.format, "read-only": true, "file": f}
	if live {
		o["force-share"] = true
	}
	switch {
	case i.backing != nil:
		o["backing"] = i.backing.options(live)
	case i.format == disk.FormatQcow2 || i.format == disk.FormatVMDK:
		o["backing"] = nil // whatever the header says
	}
	return o
}

// server is a qemu-nbd of ours and the connection to it.
type server struct {
	cmd    *exec.Cmd
	dir    string
	client *nbdclient.Client
	ended  chan struct{} // closed when the process is gone
	said   *tail
	once   sync.Once
	err    error
}

func start(ctx context.Context, program string, options map[string]any) (_ *server, err error) {
	encoded, err := json.Marshal(options)
	if err != nil {
		return nil, err
	}
	// Only this user can go into the folder, and so to the socket.
	dir, err := os.MkdirTemp("", "lockstep-nbd-")
	if err != nil {
		return nil, fmt.Errorf("start qemu-nbd: %w", err)
	}
	s := &server{dir: dir, ended: make(chan struct{}), said: &tail{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	socket := filepath.Join(dir, "s")
	// It ends by itself when its last client is gone, also where we are killed.
	s.cmd = exec.Command(program, "--read-only", "--shared=4", "--socket="+socket, "json:"+string(encoded))
	s.cmd.Env = []string{"LC_ALL=C"}
	s.cmd.Stderr = s.said
	s.cmd.Stdout = s.said
	if err := s.cmd.Start(); err != nil {
		close(s.ended)
		return nil, fmt.Errorf("start qemu-nbd: %w", err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	ctx, stop := context.WithTimeout(ctx, startTime)
	defer stop()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			if s.client, err = nbdclient.NewClient(ctx, conn, "", nil); err == nil {
				return s, nil
			}
			_ = conn.Close()
			// It listens before it opens the image: where that failed, it is about to say so.
			select {
			case <-s.ended:
				return nil, s.refusal()
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			return nil, fmt.Errorf("start qemu-nbd: %w", err)
		}
		select {
		case <-s.ended:
			return nil, s.refusal()
		case <-ctx.Done():
			return nil, fmt.Errorf("start qemu-nbd: %w", ctx.Err())
		case <-time.After(pollTime):
		}
	}
}

// refusal is why qemu-nbd did not begin, by what it said.
func (s *server) refusal() error {
	return refusal("qemu-nbd", s.said.String())
}

func refusal(program, text string) error {
	if strings.Contains(text, "lock") && strings.Contains(text, "Is another process using the image") {
		return fmt.Errorf("%w: a process has the image open for writing", source.ErrInUse)
	}
	return fmt.Errorf("%w: %s says: %s", source.ErrUnsupported, program, text)
}

// stop ends the process, which has nothing to save, and removes the folder.
func (s *server) stop() error {
	s.once.Do(func() {
		if s.cmd != nil && s.cmd.Process != nil {
			_ = s.cmd.Process.Kill() // an error: it has ended
			<-s.ended
		}
		s.err = os.RemoveAll(s.dir)
	})
	return s.err
}

// tail keeps the first of what a process says, in one line.
type tail struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text.Write(p[:min(len(p), maxSaid-t.text.Len())])
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.Fields(strings.ToValidUTF8(t.text.String(), "?")), " ")
}
