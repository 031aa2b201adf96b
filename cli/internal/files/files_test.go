package files

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadSecret(t *testing.T) {
	long := strings.Repeat("x", MaxSecret)
	tests := []struct {
		in   string
		line bool
		want string
		ok   bool
	}{
		{"pass\nmore", true, "pass", true},
		{"pass\r\n", true, "pass\r", true},
		{"pass", true, "pass", true},
		{"\npass", true, "", true},
		{"pass\nmore\n", false, "pass\nmore\n", true},
		{"", false, "", true},
		{long, false, long, true},
		{long + "x", false, "", false},
		{long + "\n", true, long, true},
		{long + "x\n", true, "", false},
	}
	for _, tt := range tests {
		// One byte at a time finds what falls on the edges of reads.
		for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in))} {
			got, err := ReadSecret(r, tt.line)
			if (err == nil) != tt.ok || (tt.ok && string(got) != tt.want) {
				t.Errorf("readSecret(%.20q, %v) = %.20q, %v", tt.in, tt.line, got, err)
			}
		}
	}
}
