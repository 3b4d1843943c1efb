package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tlsConfig reads what the machine's administrator and the user laid down for a registry, where docker and podman look: *.crt
// are CAs, NAME.cert with NAME.key is a client's certificate.
func tlsConfig(host string) (*tls.Config, error) {
	dirs := []string{"/etc/docker/certs.d", "/etc/containers/certs.d"}
	if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs, filepath.Join(home, ".config/containers/certs.d"))
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, dir := range dirs {
		if err := addCerts(config, filepath.Join(dir, host)); err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
	}
	return config, nil
}

func addCerts(config *tls.Config, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(path) {
		case ".crt":
			if err := addCA(config, path); err != nil {
				return err
			}
		case ".cert":
			pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
			if err != nil {
				return err
			}
			config.Certificates = append(config.Certificates, pair)
		}
	}
	return nil
}

func addCA(config *tls.Config, path string) error {
	if config.RootCAs == nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return err
		}
		config.RootCAs = pool
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s: no certificate in it", path)
	}
	return nil
}
