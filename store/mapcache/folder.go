package mapcache

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// An entry is a file HH/HHHH…-N: the digest of the object's name (its first
// two digits are the folder) and the number of the window in hex. In it:
//
//	"LSCACH01", u8 end, u16 length of the name, u32 length of the data,
//	name, data, SHA-256 of all that precedes
//
// It is written under a temporary name and renamed, without fsync: what a power
// cut leaves of it fails its checksum.
const (
	magic       = "LSCACH01"
	entryHead   = len(magic) + 1 + 2 + 4
	maxName     = 4096 // a location and a key
	maxEntry    = entryHead + maxName + Window + sha256.Size
	nameDigits  = 40
	tempPrefix  = "tmp-"
	folderMode  = 0o700
	entryMode   = 0o600
	diskBlock   = 4096
	minBytes    = 4 << 20
	staleTemp   = 24 * time.Hour
	maxFilesSub = 1 << 16 // that one folder of entries is read to
)

// folder is where entries lie. Its methods do not fail: a cache that cannot be
// used is a cache in which nothing is found.
type folder struct {
	root *os.Root
	max  int64
	log  *slog.Logger

	mu      sync.Mutex
	counted int64 // bytes on disk by the last scan, and what was written since
	written int64 // since the last scan
	warned  bool
}

func openFolder(dir string, o Options) (*folder, error) {
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return nil, err
	}
	st, err := os.Lstat(dir)
	switch {
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, fmt.Errorf("%s is not a folder (hint: name a folder of its own, without symbolic links)", dir)
	case runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s may be used by others (hint: chmod 700 %s)", dir, dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	f := &folder{root: root, max: o.MaxBytes, log: o.Log}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trim()
	return f, nil
}

func (f *folder) close() error { return f.root.Close() }

// find gives an entry's data, and whether the object ends with it.
func (f *folder) find(object string, window int64) (data []byte, end, ok bool) {
	name := entryName(object, window)
	st, err := f.root.Lstat(name)
	if err != nil || !st.Mode().IsRegular() || st.Size() > int64(maxEntry) {
		return nil, false, false
	}
	file, err := f.root.Open(name)
	if err != nil {
		return nil, false, false
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, st.Size()))
	if err != nil {
		return nil, false, false
	}
	data, end, ok = parseEntry(raw, object)
	if !ok {
		_ = f.root.Remove(name) // so that it takes no room
		return nil, false, false
	}
	now := time.Now()
	_ = f.root.Chtimes(name, now, now) // used: the order in which entries go
	return data, end, true
}

// parseEntry gives the data of an entry of the object.
func parseEntry(raw []byte, object string) (data []byte, end, ok bool) {
	if len(raw) < entryHead+sha256.Size || string(raw[:len(magic)]) != magic {
		return nil, false, false
	}
	body, sum := raw[:len(raw)-sha256.Size], raw[len(raw)-sha256.Size:]
	nameLen := int(binary.LittleEndian.Uint16(raw[len(magic)+1:]))
	dataLen := int64(binary.LittleEndian.Uint32(raw[len(magic)+3:]))
	if int64(len(body)) != int64(entryHead)+int64(nameLen)+dataLen || string(body[entryHead:entryHead+nameLen]) != object {
		return nil, false, false
	}
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, false, false
	}
	return body[entryHead+nameLen:], raw[len(magic)] == 1, true
}

func encodeEntry(object string, data []byte, end bool) []byte {
	raw := make([]byte, 0, entryHead+len(object)+len(data)+sha256.Size)
	raw = append(raw, magic...)
	flag := byte(0)
	if end {
		flag = 1
	}
	raw = append(raw, flag)
	raw = binary.LittleEndian.AppendUint16(raw, uint16(len(object)))
	raw = binary.LittleEndian.AppendUint32(raw, uint32(len(data)))
	raw = append(raw, object...)
	raw = append(raw, data...)
	sum := sha256.Sum256(raw)
	return append(raw, sum[:]...)
}

// keep stores data, which begins at the window's beginning.
func (f *folder) keep(object string, window int64, data []byte, end bool) {
	if temp := f.writeTemp(object, data, end); temp != "" {
		f.rename(temp, entryName(object, window))
	}
}

// writeTemp writes an entry under a temporary name, "" if it cannot.
func (f *folder) writeTemp(object string, data []byte, end bool) string {
	if len(object) > maxName || len(data) > Window {
		return ""
	}
	raw := encodeEntry(object, data, end)
	temp := tempPrefix + strings.ToLower(rand.Text())
	file, err := f.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, entryMode)
	if err != nil {
		f.warn(err)
		return ""
	}
	_, err = file.Write(raw)
	if err = errors.Join(err, file.Close()); err != nil {
		f.warn(err)
		_ = f.root.Remove(temp)
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counted += onDisk(int64(len(raw)))
	f.written += onDisk(int64(len(raw)))
	if f.written > f.max/16 || f.counted > f.max {
		f.trim()
	}
	return temp
}

func (f *folder) rename(temp, name string) {
	sub := filepath.Dir(name)
	if err := f.root.Mkdir(sub, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		f.warn(err)
	}
	// The kernel's own time is coarser than that of uses.
	now := time.Now()
	_ = f.root.Chtimes(temp, now, now)
	if err := f.root.Rename(temp, name); err != nil {
		f.warn(err)
		_ = f.root.Remove(temp)
	}
}

// forget removes all entries of an object.
func (f *folder) forget(object string) {
	prefix := filepath.Base(objectName(object)) + "-"
	sub := filepath.Dir(objectName(object))
	for _, e := range f.read(sub) {
		if strings.HasPrefix(e.Name(), prefix) {
			_ = f.root.Remove(filepath.Join(sub, e.Name()))
		}
	}
}

func (f *folder) read(name string) []fs.DirEntry {
	d, err := f.root.Open(name)
	if err != nil {
		return nil
	}
	defer d.Close()
	entries, _ := d.ReadDir(maxFilesSub)
	return entries
}

type used struct {
	name string
	size int64
	at   time.Time
}

// trim counts what lies in the folder, whoever put it there, and removes what
// was not used for longest if it is too much. The caller holds the mutex.
func (f *folder) trim() {
	var all []used
	total := int64(0)
	for _, sub := range f.read(".") {
		switch {
		case strings.HasPrefix(sub.Name(), tempPrefix):
			st, err := sub.Info()
			if err == nil && time.Since(st.ModTime()) > staleTemp { // a killed process's
				_ = f.root.Remove(sub.Name())
			} else if err == nil {
				total += onDisk(st.Size())
			}
			continue
		case !sub.IsDir() || !isHex(sub.Name(), 2):
			continue // not ours
		}
		for _, e := range f.read(sub.Name()) {
			st, err := e.Info()
			if err != nil || !st.Mode().IsRegular() || !isEntryName(e.Name()) {
				continue
			}
			all = append(all, used{filepath.Join(sub.Name(), e.Name()), onDisk(st.Size()), st.ModTime()})
			total += onDisk(st.Size())
		}
	}
	if total > f.max {
		slices.SortFunc(all, func(a, b used) int { return a.at.Compare(b.at) })
		for _, u := range all {
			if total <= f.max-f.max/8 { // room, so that the next window does not ask for this again
				break
			}
			if err := f.root.Remove(u.name); err == nil || errors.Is(err, fs.ErrNotExist) {
				total -= u.size
			}
		}
	}
	f.counted, f.written = total, 0
}

// warn says once that the cache cannot be written: it is slower without, not wrong.
func (f *folder) warn(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.warned {
		f.warned = true
		f.log.Warn("store cache cannot be written; it is done without", "error", err)
	}
}

// pending are the windows of an object that is being written. They become
// entries when it is committed, not before: until then it is not there.
type pending struct {
	f      *folder
	object string
	part   []byte
	temps  []string
	broken bool
}

func (f *folder) begin(object string) *pending { return &pending{f: f, object: object} }

func (p *pending) write(data []byte) {
	for len(data) > 0 && !p.broken {
		n := min(Window-len(p.part), len(data))
		p.part = append(p.part, data[:n]...)
		data = data[n:]
		if len(p.part) == Window {
			p.flush(false)
		}
	}
}

func (p *pending) flush(end bool) {
	temp := p.f.writeTemp(p.object, p.part, end)
	p.temps = append(p.temps, temp)
	p.part = p.part[:0]
	if temp == "" || int64(len(p.temps))*Window > p.f.max/2 {
		p.drop() // an object that would push out all others is not kept
	}
}

func (p *pending) publish() {
	if !p.broken && len(p.part) > 0 {
		p.flush(true)
	}
	for n, temp := range p.temps {
		p.f.rename(temp, entryName(p.object, int64(n)))
	}
	p.temps, p.part, p.broken = nil, nil, true
}

func (p *pending) drop() {
	for _, temp := range p.temps {
		if temp != "" {
			_ = p.f.root.Remove(temp)
		}
	}
	p.temps, p.part, p.broken = nil, nil, true
}

func objectName(object string) string {
	sum := sha256.Sum256([]byte(object))
	digits := hex.EncodeToString(sum[:])
	return filepath.Join(digits[:2], digits[2:nameDigits])
}

func entryName(object string, window int64) string {
	return objectName(object) + "-" + strconv.FormatInt(window, 16)
}

func isEntryName(name string) bool {
	digits, window, ok := strings.Cut(name, "-")
	return ok && isHex(digits, nameDigits-2) && isHex(window, len(window)) && window != ""
}

// onDisk is what a file of that size takes, about.
func onDisk(size int64) int64 { return (size + diskBlock - 1) / diskBlock * diskBlock }

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range n {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
