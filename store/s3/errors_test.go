package s3

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
)

// A service that does not answer is told with what to look at.
func TestUnreachableHasAHint(t *testing.T) {
	for _, err := range []error{
		&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
		fmt.Errorf("get: %w", &net.DNSError{Err: "no such host", IsNotFound: true}),
	} {
		var h interface{ Hint() string }
		if got := describe(err); !errors.Is(got, err) || !errors.As(got, &h) || !strings.Contains(h.Hint(), "endpoint=") {
			t.Errorf("%v: %v", err, got)
		}
	}
}
