package disk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// QEMU locks single bytes of an image with shared OFD locks: byte 100+n says
// "I use permission n", byte 200+n "nobody else may" (block/file-posix.c,
// block.h: consistent-read 0, write 1, write-unchanged 2, resize 3).
const (
	qemuUses         = 100
	qemuForbids      = 200
	qemuRead         = 0
	qemuWrite        = 1
	qemuResize       = 3
	qemuBytesPerKind = 100
)

// InUse says in words who changes the content of the file or block device f, or
// for whom it must not change if the caller is going to write; "" when nobody
// is found. It sees: mounts, swap, holders (device-mapper, md) and exclusive
// openers of devices and their partitions; loop devices backed by a file; locks
// (QEMU's, POSIX, OFD, flock); writers among the processes whose /proc entries
// may be read. It cannot see another host that shares the storage.
func InUse(f *os.File, write bool) (string, error) {
	var st unix.Stat_t
	if err := onFD(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return "", fmt.Errorf("look for users of disk: %w", err)
	}
	var devices map[string]string
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		var by string
		if devices, by = deviceUser(st.Rdev); by != "" {
			return by, nil
		}
	} else if by := loopDeviceOf(f); by != "" {
		return by, nil
	}
	by, err := lockHolder(f, write)
	if by != "" || err != nil {
		return by, err
	}
	return writerProcess(&st, devices), nil
}

// deviceUser looks at a block device, its partitions, and the disk that it is a
// partition of. devices names them: "8:1" → "sda1".
func deviceUser(rdev uint64) (devices map[string]string, by string) {
	devices = map[string]string{}
	id := deviceID(rdev)
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + id)
	if err != nil { // no sysfs: the exclusive open still decides
		devices[id] = id
	} else {
		devices[id] = filepath.Base(sys)
		parts, _ := filepath.Glob(filepath.Join(sys, "*", "partition"))
		for _, part := range parts {
			dir := filepath.Dir(part)
			if dev, err := os.ReadFile(filepath.Join(dir, "dev")); err == nil {
				devices[strings.TrimSpace(string(dev))] = filepath.Base(dir)
			}
			if by := holder(dir); by != "" {
				return devices, by
			}
		}
		if by := holder(sys); by != "" {
			return devices, by
		}
		if _, err := os.Stat(filepath.Join(sys, "partition")); err == nil {
			if dev, err := os.ReadFile(filepath.Join(filepath.Dir(sys), "dev")); err == nil {
				devices[strings.TrimSpace(string(dev))] = filepath.Base(filepath.Dir(sys))
			}
		}
	}
	if where, name := mountOf(devices); where != "" {
		return devices, fmt.Sprintf("%s is mounted at %s", name, where)
	}
	for line := range lines("/proc/swaps") {
		path, _, _ := strings.Cut(line, " ")
		var st unix.Stat_t
		if strings.HasPrefix(path, "/") && unix.Stat(unescape(path), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			if name, ok := devices[deviceID(st.Rdev)]; ok {
				return devices, name + " is used as swap"
			}
		}
	}
	return devices, ""
}

func deviceID(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

func holder(sysDir string) string {
	entries, err := os.ReadDir(filepath.Join(sysDir, "holders"))
	if err != nil || len(entries) == 0 {
		return ""
	}
	return fmt.Sprintf("%s is held by %s", filepath.Base(sysDir), entries[0].Name())
}

func mountOf(devices map[string]string) (where, name string) {
	for line := range lines("/proc/self/mountinfo") { // proc(5): id parent major:minor root mount-point …
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if name, ok := devices[fields[2]]; ok {
			return unescape(fields[4]), name
		}
	}
	return "", ""
}

// lines yields the lines of a file of the kernel's; none when it is not there.
func lines(path string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if !yield(s.Text()) {
				return
			}
		}
	}
}

// unescape undoes the octal escapes of mountinfo and swaps (\040 is a space).
func unescape(s string) string {
	for i := 0; i+4 <= len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
			s = s[:i] + string([]byte{byte(n)}) + s[i+4:]
		}
	}
	return s
}

func loopDeviceOf(f *os.File) string {
	self, err := f.Stat()
	if err != nil {
		return ""
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil { // detached meanwhile
			continue
		}
		path := strings.TrimSuffix(strings.TrimSuffix(string(backing), "\n"), " (deleted)")
		if st, err := os.Stat(path); err == nil && os.SameFile(self, st) {
			return "loop device /dev/" + filepath.Base(filepath.Dir(filepath.Dir(file))) + " is backed by it"
		}
	}
	return ""
}

// lockHolder asks for locks without taking one that stays.
func lockHolder(f *os.File, write bool) (by string, err error) {
	err = onFD(f, func(fd int) error {
		if by, err = conflict(fd, unix.F_RDLCK, 0, 0); by != "" || err != nil {
			return err
		}
		if write {
			if by, err = conflict(fd, unix.F_WRLCK, 0, 0); by != "" || err != nil {
				return err
			}
		}
		for _, at := range []int64{qemuUses + qemuWrite, qemuUses + qemuResize, qemuForbids + qemuRead} {
			if by, err = conflict(fd, unix.F_WRLCK, at, 1); by != "" || err != nil {
				return err
			}
		}
		how := unix.LOCK_SH
		if write {
			how = unix.LOCK_EX
		}
		err := retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
		if errors.Is(err, unix.EWOULDBLOCK) {
			by = "another process holds a lock (flock) on it"
			return nil
		}
		if err == nil {
			err = unix.Flock(fd, unix.LOCK_UN)
		}
		return ignoreNoLocks(err)
	})
	if err != nil {
		return "", fmt.Errorf("look for locks: %w", err)
	}
	return by, nil
}

// conflict names the first lock that a lock of the given kind would collide
// with. length 0 is the whole file; length 1 counts QEMU's lock bytes only, for
// a reader of the whole file has them locked as well.
func conflict(fd int, kind int16, start, length int64) (string, error) {
	lock := unix.Flock_t{Type: kind, Start: start, Len: length}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock)
	if err != nil {
		return "", ignoreNoLocks(err)
	}
	if lock.Type == unix.F_UNLCK {
		return "", nil
	}
	isQEMU := lock.Start >= qemuUses && lock.Len > 0 && lock.Start+lock.Len <= qemuForbids+qemuBytesPerKind
	if isQEMU {
		return "QEMU has locked it (a guest or an image tool uses it)", nil
	}
	if length == 1 {
		return "", nil
	}
	if lock.Pid > 0 {
		return fmt.Sprintf("process %d holds a lock on it", lock.Pid), nil
	}
	return "another process holds a lock on it", nil
}

// ignoreNoLocks forgives file systems without locks.
func ignoreNoLocks(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// writerProcess looks for another process that has the file or devices open for
// writing. Nothing is stat'ed that is not already likely to be it, because a
// stat of a stranger's file can hang on a dead network file system.
func writerProcess(st *unix.Stat_t, devices map[string]string) string {
	isDevice := st.Mode&unix.S_IFMT == unix.S_IFBLK
	procs, _ := os.ReadDir("/proc")
	self := strconv.Itoa(os.Getpid())
	for _, proc := range procs {
		pid := proc.Name()
		if pid[0] < '1' || pid[0] > '9' || pid == self {
			continue
		}
		fds, err := os.ReadDir("/proc/" + pid + "/fdinfo")
		if err != nil { // gone, or not ours to see
			continue
		}
		for _, fd := range fds {
			link := "/proc/" + pid + "/fd/" + fd.Name()
			if !mayWrite("/proc/"+pid+"/fdinfo/"+fd.Name(), st.Ino, isDevice) {
				continue
			}
			if path, err := os.Readlink(link); err != nil || isDevice && !strings.HasPrefix(path, "/dev/") || !strings.HasPrefix(path, "/") {
				continue
			}
			var other unix.Stat_t
			if unix.Stat(link, &other) != nil {
				continue
			}
			same := other.Dev == st.Dev && other.Ino == st.Ino
			if isDevice {
				_, same = devices[deviceID(other.Rdev)]
				same = same && other.Mode&unix.S_IFMT == unix.S_IFBLK
			}
			if same {
				name, _ := os.ReadFile("/proc/" + pid + "/comm")
				return fmt.Sprintf("process %s (%s) has it open for writing", pid, strings.TrimSpace(string(name)))
			}
		}
	}
	return ""
}

// mayWrite reads proc_pid_fdinfo(5): "flags:" is octal, "ino:" there since Linux 5.14.
func mayWrite(fdinfo string, ino uint64, isDevice bool) bool {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	writable := false
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		word := string(bytes.TrimSpace(value))
		switch string(key) {
		case "flags":
			flags, err := strconv.ParseUint(word, 8, 64)
			writable = err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY && flags&unix.O_PATH == 0
		case "ino":
			// A device may have several nodes, so only files are told apart by inode.
			if n, err := strconv.ParseUint(word, 10, 64); err == nil && !isDevice && n != ino {
				return false
			}
		}
	}
	return writable
}

// LockForReading takes the locks of a QEMU reader, so that no guest starts on
// the image while it is read; they go when f is closed. ErrLocked when
// somebody was faster; file systems without locks are fine.
func LockForReading(f *os.File) error {
	return lock(f, unix.F_RDLCK, qemuUses+qemuRead, qemuForbids+qemuWrite, qemuForbids+qemuResize)
}

// LockForWriting locks all of f against everybody who asks for locks.
func LockForWriting(f *os.File) error { return lock(f, unix.F_WRLCK, 0) }

func lock(f *os.File, kind int16, bytes ...int64) error {
	err := onFD(f, func(fd int) error {
		for _, at := range bytes {
			l := unix.Flock_t{Type: kind, Start: at, Len: 1}
			if kind == unix.F_WRLCK {
				l.Len = 0
			}
			if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("lock disk: %w", ErrLocked)
	}
	if err := ignoreNoLocks(err); err != nil {
		return fmt.Errorf("lock disk: %w", err)
	}
	return nil
}
