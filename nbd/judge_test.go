package nbd

import (
	"bytes"
	"context"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// Others' clients on our encrypted server: with a certificate, and without.
func TestJudgesEncrypted(t *testing.T) {
	nbdinfo := judge.Tool(t, "nbdinfo")
	dir := certificates(t)
	config, _, err := ServerTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := patchy(2 << 20)
	socket := serve(t, Config{Exports: []Export{{Name: "vda", Disk: m}}, TLS: config})
	stranger := t.TempDir() // knows the authority and has no certificate
	ca, err := os.ReadFile(filepath.Join(dir, fileCA))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stranger, fileCA), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	uri := func(scheme, certificates string) string {
		q := url.Values{"socket": {socket}}
		if certificates != "" {
			q.Set("tls-certificates", certificates)
		}
		return scheme + "+unix://localhost/vda?" + q.Encode()
	}
	for _, k := range []struct {
		name, uri string
		ok        bool
	}{
		{"a certificate", uri("nbds", dir), true},
		{"no certificate", uri("nbds", stranger), false},
		{"no encryption", uri("nbd", ""), false},
	} {
		out, err := exec.Command(nbdinfo, "--size", k.uri).CombinedOutput()
		if ok := err == nil && strings.TrimSpace(string(out)) == "2097152"; ok != k.ok {
			t.Errorf("with %s: %v\n%s", k.name, err, out)
		}
		judge.Decided(t, "nbdinfo with TLS")
	}
}

// Our client on others' encrypted server.
func TestClientEncryptedByOthers(t *testing.T) {
	dir := certificates(t)
	m := patchy(2 << 20)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, m.p, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	cmd := exec.CommandContext(ctx, judge.Tool(t, "nbdkit"), "-f", "-U", socket, "--tls=require", "--tls-verify-peer", "--tls-certificates="+dir, "file", image)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stop(); _ = cmd.Wait() }()
	config, err := ClientTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	config.ServerName = "localhost"
	var c *Client
	for range 200 {
		if c, err = Dial(t.Context(), "unix", socket, "", config); err == nil {
			break
		}
		select {
		case <-t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.p) {
		t.Errorf("content differs, %v", err)
	}
	judge.Decided(t, "nbdkit with TLS")
}
