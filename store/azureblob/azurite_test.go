package azureblob

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

const (
	// The account and the key that Azurite's documentation publishes.
	testAccount = "devstoreaccount1"
	testKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

	judgeName = "azurite"
)

var azurite struct {
	once    sync.Once
	url     string
	err     error
	process *exec.Cmd
	dir     string
	number  int
	mu      sync.Mutex
}

func TestMain(m *testing.M) {
	code := m.Run()
	if azurite.process != nil {
		_ = azurite.process.Process.Kill()
		_ = azurite.process.Wait()
		_ = os.RemoveAll(azurite.dir)
	}
	os.Exit(code)
}

// server gives the URL of an Azurite that all tests of this process share, or
// ends the test.
func server(t testing.TB) string {
	t.Helper()
	judge.Tool(t, "node")
	program := judge.Tool(t, "azurite-blob")
	azurite.once.Do(func() { azurite.err = startAzurite(program) })
	if azurite.err != nil {
		t.Fatal(azurite.err)
	}
	return azurite.url
}

func startAzurite(program string) error {
	dir, err := os.MkdirTemp("", "lockstep-azurite-")
	if err != nil {
		return err
	}
	azurite.dir = dir
	cmd := exec.Command(program, "--blobHost", "127.0.0.1", "--blobPort", "0",
		"--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent")
	cmd.Dir = dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	azurite.process = cmd
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, url, ok := strings.Cut(lines.Text(), "successfully listens on "); ok {
			azurite.url = strings.TrimSpace(url)
			go func() {
				for lines.Scan() { // or it would block when the pipe is full
				}
			}()
			return nil
		}
	}
	return fmt.Errorf("azurite did not start: %v", lines.Err())
}

// newLocation names a container that is not there yet, behind a server's or a proxy's URL.
func newLocation(t testing.TB, url, more string) string {
	t.Helper()
	azurite.mu.Lock()
	azurite.number++
	n := azurite.number
	azurite.mu.Unlock()
	return fmt.Sprintf("azblob://%s/test%06d%s?endpoint=%s/%s", testAccount, n, more, url, testAccount)
}

func openAt(t testing.TB, location string, o Options) *Store {
	t.Helper()
	if o.Secret == nil {
		o.Secret = []byte(testKey)
	}
	o.Create = true
	s, err := Open(context.Background(), location, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func secretFile(t testing.TB, content string, mode os.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
	return name
}
