package fve_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
)

// What is written is what Windows 10 writes: the layout of one of its files,
// around a key of zeroes. cryptsetup takes no other role of the key.
func TestKeyFileIsAsWindowsWritesIt(t *testing.T) {
	want, err := hex.DecodeString("9c00000001000000300000009c000000" + "59f78143f8c4e04dbb61fc33a831bda5" +
		"0100000000000000f002bafe318bd601" + "6c0006000900010059f78143f8c4e04d" + "bb61fc33a831bda5f002bafe318bd601" +
		"20000000020001004500780074006500" + "72006e0061006c004b00650079000000" + "2c0000000100010002200000")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, make([]byte, 32)...)
	k, err := fve.ParseKeyFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if got := fve.FormatKeyFile(*k); !bytes.Equal(got, want) {
		t.Errorf("written\n%x, want\n%x", got, want)
	}
}
