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

// S3Server is a real S3 server over a folder of its own. Its buckets are made
// with an S3 client; versioning and object lock work.
type S3Server struct {
	Program           string // that serves
	Endpoint          string // http://127.0.0.1:PORT
	AccessKey, Secret string
}

// Versitygw starts one for a test, which ends it; a missing program ends the
// test like Tool.
func Versitygw(tb testing.TB) S3Server {
	tb.Helper()
	return s3Server(tb, "versitygw", []string{"data", "versions"}, func(s S3Server, program, dir, address string) *exec.Cmd {
		cmd := exec.Command(program, "--quiet", "--port", address, "posix",
			"--versioning-dir", filepath.Join(dir, "versions"), filepath.Join(dir, "data"))
		cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.Secret}
		return cmd
	})
}

// Minio starts one for a test, like Versitygw.
func Minio(tb testing.TB) S3Server {
	tb.Helper()
	return s3Server(tb, "minio", []string{"data"}, func(s S3Server, program, dir, address string) *exec.Cmd {
		cmd := exec.Command(program, "server", "--quiet", "--address", address, "--console-address", "127.0.0.1:0",
			"--certs-dir", filepath.Join(dir, "certs"), filepath.Join(dir, "data"))
		cmd.Env = []string{
			"MINIO_ROOT_USER=" + s.AccessKey, "MINIO_ROOT_PASSWORD=" + s.Secret,
			"MINIO_UPDATE=off", "MINIO_BROWSER=off", "MINIO_CALLHOME_ENABLE=off", "MINIO_CI_CD=on", // its folder may lie on the root disk
		}
		return cmd
	})
}

func s3Server(tb testing.TB, name string, folders []string, command func(s S3Server, program, dir, address string) *exec.Cmd) S3Server {
	tb.Helper()
	program := Tool(tb, name)
	dir := tb.TempDir()
	for _, d := range folders {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	s := S3Server{Program: name, AccessKey: "lockstep-test", Secret: "lockstep-test-secret"}
	for range 3 { // another process may take the port before the server does
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		address := l.Addr().String()
		_ = l.Close()
		var output bytes.Buffer
		cmd := command(s, program, dir, address)
		cmd.Env = append(cmd.Env, "HOME="+dir, "PATH=/usr/bin:/bin")
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Start(); err != nil {
			tb.Fatalf("start %s: %v", name, err)
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
		tb.Logf("%s did not start: %s", name, output.Bytes())
	}
	tb.Fatalf("%s did not start", name)
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
