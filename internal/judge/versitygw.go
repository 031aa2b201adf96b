package judge

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// S3Server is a real S3 server (versitygw) over a folder of its own. Its
// buckets are made with an S3 client; versioning and object lock work.
type S3Server struct {
	Endpoint          string // http://127.0.0.1:PORT
	AccessKey, Secret string
}

// Versitygw starts one for a test, which ends it; a missing program ends the
// test like Tool.
func Versitygw(tb testing.TB) S3Server {
	tb.Helper()
	program := Tool(tb, "versitygw")
	dir := tb.TempDir()
	for _, d := range []string{"data", "versions", "iam"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	s := S3Server{AccessKey: "lockstep-test", Secret: "lockstep-test-secret"}
	for range 3 { // another process may take the port before the server does
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		address := l.Addr().String()
		_ = l.Close()
		var output bytes.Buffer
		cmd := exec.Command(program, "--quiet", "--port", address, "posix",
			"--versioning-dir", filepath.Join(dir, "versions"), filepath.Join(dir, "data"))
		cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.Secret, "HOME=" + dir, "PATH=/usr/bin:/bin"}
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Start(); err != nil {
			tb.Fatalf("start versitygw: %v", err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		s.Endpoint = "http://" + address
		if answers(s.Endpoint, ended) {
			tb.Cleanup(func() {
				_ = cmd.Process.Kill()
				<-ended
			})
			return s
		}
		_ = cmd.Process.Kill()
		<-ended
		tb.Logf("versitygw did not start: %s", output.Bytes())
	}
	tb.Fatal("versitygw did not start")
	return s
}

// answers waits until a server answers a request, or its process has ended.
func answers(url string, ended <-chan struct{}) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}
