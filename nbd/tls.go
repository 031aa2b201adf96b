package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Files of a folder with certificates, named as QEMU and nbdkit name them.
const (
	fileCA         = "ca-cert.pem"
	fileServerCert = "server-cert.pem"
	fileServerKey  = "server-key.pem"
	fileClientCert = "client-cert.pem"
	fileClientKey  = "client-key.pem"
)

// ServerTLS reads a server's certificate and key from dir. Where ca-cert.pem is
// there too, clients must show a certificate that it signed, and known is true;
// else whoever reaches the server may read.
func ServerTLS(dir string) (config *tls.Config, known bool, err error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, fileServerCert), filepath.Join(dir, fileServerKey))
	if err != nil {
		return nil, false, fmt.Errorf("read the server's certificate: %w", err)
	}
	config = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	pool, err := readPool(filepath.Join(dir, fileCA))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return config, false, nil
	case err != nil:
		return nil, false, err
	}
	config.ClientCAs, config.ClientAuth = pool, tls.RequireAndVerifyClientCert
	return config, true, nil
}

// ClientTLS reads from dir the authority that servers must be signed by, and
// where there is one the client's certificate and key.
func ClientTLS(dir string) (*tls.Config, error) {
	pool, err := readPool(filepath.Join(dir, fileCA))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, fileClientCert), filepath.Join(dir, fileClientKey))
	switch {
	case err == nil:
		config.Certificates = []tls.Certificate{cert}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read the client's certificate: %w", err)
	}
	return config, nil
}

func readPool(path string) (*x509.CertPool, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p) {
		return nil, fmt.Errorf("read certificate authority: %s has no certificate", path)
	}
	return pool, nil
}
