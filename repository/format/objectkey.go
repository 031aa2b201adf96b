package format

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Frame kinds.
const (
	KindConfig   uint16 = 1
	KindHolder   uint16 = 2
	KindTrust    uint16 = 3
	KindMachine  uint16 = 4
	KindManifest uint16 = 5
	KindLog      uint16 = 6
	KindHeader   uint16 = 7
	KindSidecar  uint16 = 8
	KindTOC      uint16 = 9
	KindLedger   uint16 = 10
	KindPages    uint16 = 11
)

// Object keys and prefixes.
const (
	ConfigKey     = "config"
	HolderPrefix  = "keys/"
	TrustPrefix   = "trust/"
	MachinePrefix = "machines/"
	HeaderPrefixA = "headers-a/"
	HeaderPrefixB = "headers-b/"
)

// HolderKey is where the DEK wrapped for one holder lies.
func HolderKey(name string) string { return HolderPrefix + name }

// TrustKey is where trust log entry n lies.
func TrustKey(n int64) string { return fmt.Sprintf("%s%016x", TrustPrefix, n) }

// MachineKey is where a machine's record lies.
func MachineKey(mid string) string { return MachinePrefix + mid + "/key" }

// ManifestKey is where a recovery point's manifest lies.
func ManifestKey(mid, pid string) string { return "points/" + mid + "/" + pid }

// LogPrefix is the folder of a machine's log.
func LogPrefix(mid string) string { return "log/" + mid + "/" }

// LogKey is where entry n of a machine's log lies.
func LogKey(mid string, n int64) string { return fmt.Sprintf("log/%s/%016x", mid, n) }

// SegmentPrefix is the folder of a machine's segments.
func SegmentPrefix(mid string) string { return "seg/" + mid + "/" }

// SegmentKey is where a segment lies.
func SegmentKey(mid string, n Name) string { return SegmentPrefix(mid) + n.path() }

// BirthPrefix is the folder of a machine's segments of one birth.
func BirthPrefix(mid string, birth int64) string {
	return SegmentPrefix(mid) + NewName(birth, 0).String()[:8] + "/"
}

// MapKey is where a map object lies.
func MapKey(mid string, n Name) string { return MapPrefix(mid) + n.path() }

// MapPrefix is the folder of a machine's map objects.
func MapPrefix(mid string) string { return "map/" + mid + "/" }

// LedgerPrefix is the folder of a machine's ledgers.
func LedgerPrefix(mid string) string { return "ledger/" + mid + "/" }

// LedgerKey is where a ledger lies: of the reclaim with fence n; stage 1 =
// accounted, 2 = swept.
func LedgerKey(mid string, n int64, stage int) string {
	return fmt.Sprintf("%s%016x-%d", LedgerPrefix(mid), n, stage)
}

// ReplicaKey is where a replica of the object at key lies.
func ReplicaKey(key string, random uint32) string { return fmt.Sprintf("%s-%08x", key, random) }

// Original splits the key of a segment or map object, or of a replica of one,
// into that of the original and whether it is a replica's. ok says that it is such a key.
func Original(key string) (original string, name Name, replica, ok bool) {
	original = key
	if n := len(key); n > 9 && key[n-9] == '-' {
		original, replica = key[:n-9], true
		if strings.Trim(key[n-8:], "0123456789abcdef") != "" {
			return key, name, false, false
		}
	}
	part := strings.Split(original, "/")
	if len(part) != 4 || part[0] != "seg" && part[0] != "map" || !ValidID(part[1]) || len(part[2]) != 8 {
		return key, name, false, false
	}
	name, err := ParseName(part[2] + part[3])
	return original, name, replica, err == nil
}

// HeaderKeys are where the two copies of an encryption header lie.
func HeaderKeys(mid, hid string) [2]string {
	return [2]string{HeaderPrefixA + mid + "/" + hid, HeaderPrefixB + mid + "/" + hid}
}

// SidecarPrefix is the folder of a recovery point's sidecars.
func SidecarPrefix(mid, pid string) string { return "side/" + mid + "/" + pid + "/" }

// SidecarKey is where a sidecar lies.
func SidecarKey(mid, pid, kind, r string) string { return SidecarPrefix(mid, pid) + kind + "-" + r }

// ValidID reports whether s is the hex form of 128 bits, as machine and point ids are.
func ValidID(s string) bool {
	if len(s) != 32 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// Name is the name of a segment or map object: its writer's birth and 32 random bits.
type Name [8]byte

// NewName makes a name from a birth and random bits.
func NewName(birth int64, random uint32) Name {
	var n Name
	binary.BigEndian.PutUint32(n[:4], uint32(birth))
	binary.BigEndian.PutUint32(n[4:], random)
	return n
}

// Birth is the birth of the writer that made the name.
func (n Name) Birth() int64 { return int64(binary.BigEndian.Uint32(n[:4])) }

func (n Name) String() string { return hex.EncodeToString(n[:]) }

// path is the name as two parts of an object key.
func (n Name) path() string { s := n.String(); return s[:8] + "/" + s[8:] }

// ParseName reads 16 hex digits.
func ParseName(s string) (Name, error) {
	var n Name
	if len(s) != 16 || strings.ToLower(s) != s {
		return n, fmt.Errorf("object name %q: %w", s, ErrCorrupt)
	}
	if _, err := hex.Decode(n[:], []byte(s)); err != nil {
		return n, fmt.Errorf("object name %q: %w", s, ErrCorrupt)
	}
	return n, nil
}

// ParseNumber reads the 16 hex digits of a log or trust entry.
func ParseNumber(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 16, 63)
	if err != nil || len(s) != 16 || strings.ToLower(s) != s {
		return 0, fmt.Errorf("entry number %q: %w", s, ErrCorrupt)
	}
	return int64(n), nil
}
