package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
)

// ErrNotLocal says that a location names no path of this host.
var ErrNotLocal = errors.New("not a path or file URL")

// LocalPath returns the path that location names, which is a path or a file
// URL (RFC 8089: file:///path, file://localhost/path), and the URL's query.
func LocalPath(location string) (path string, query url.Values, err error) {
	if location == "" {
		return "", nil, fmt.Errorf("%w: it is empty", ErrNotLocal)
	}
	if strings.ContainsRune(location, 0) {
		return "", nil, fmt.Errorf("%w: it contains a NUL byte", ErrNotLocal)
	}
	scheme, _, isURL := strings.Cut(location, "://")
	if !isURL || strings.ContainsAny(scheme, `/\`) {
		return location, url.Values{}, nil
	}
	// The text of a URL may hold a password, so no error repeats more of it than the scheme.
	if !strings.EqualFold(scheme, "file") {
		return "", nil, fmt.Errorf("%w: scheme %q", ErrNotLocal, scheme)
	}
	u, err := url.Parse(location)
	if err != nil {
		return "", nil, fmt.Errorf("%w: the file URL cannot be parsed", ErrNotLocal)
	}
	if u.Host != "" && !strings.EqualFold(u.Host, "localhost") {
		return "", nil, fmt.Errorf("%w: the file URL names another host", ErrNotLocal)
	}
	path = u.Path
	if runtime.GOOS == "windows" { // file:///C:/disk.img
		path = strings.TrimPrefix(path, "/")
	}
	if path == "" || strings.ContainsRune(path, 0) {
		return "", nil, fmt.Errorf("%w: the file URL has no usable path", ErrNotLocal)
	}
	return filepath.FromSlash(path), u.Query(), nil
}

// NotADisk says what a path is that is neither a regular file nor, where
// devices are supported, a block device: "a folder", "a FIFO", …; "" if it is one.
func NotADisk(mode fs.FileMode, devices bool) string {
	switch {
	case mode.IsRegular():
		return ""
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeCharDevice != 0:
		return "a character device"
	case mode&fs.ModeDevice != 0 && devices:
		return ""
	case mode&fs.ModeDevice != 0:
		return "a block device, which is supported on Linux only"
	default:
		return "not a file or block device"
	}
}

// SameLocal reports whether two locations name the same path of this host.
func SameLocal(a, b string) bool {
	pa, _, erra := LocalPath(a)
	pb, _, errb := LocalPath(b)
	return a == b || erra == nil && errb == nil && filepath.Clean(pa) == filepath.Clean(pb)
}
