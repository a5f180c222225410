package tokenstore

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSOptions are how Redis is authenticated, and how this process shows who it
// is. The zero value trusts the system's authorities and shows nothing.
type TLSOptions struct {
	// CAFile holds the authorities' certificates (PEM) to trust instead of the
	// system's.
	CAFile string
	// CertFile and KeyFile are this process's certificate and its key (PEM). They
	// are read again for each connection: a renewed certificate needs no restart.
	CertFile, KeyFile string
	// ServerName is the name in the servers' certificates; "" means the host that
	// is dialed, which on a Cluster and behind Sentinels is what they announce.
	ServerName string
}

// config returns what to connect with: base, which is the URL's, as these
// options change it; nil stays nil. one says that there is a single server, so
// that the URL's host is its name.
func (o TLSOptions) config(base *tls.Config, one bool) (*tls.Config, error) {
	if base == nil {
		return nil, nil
	}
	c := base.Clone()
	c.MinVersion = tls.VersionTLS12
	switch {
	case o.ServerName != "":
		c.ServerName = o.ServerName
	case !one:
		c.ServerName = ""
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("the authorities' certificates for Redis: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the authorities' certificates for Redis: no certificate in %s", o.CAFile)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("a client certificate for Redis needs both its file and its key's")
	}
	if o.CertFile != "" {
		load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("the client certificate for Redis: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(nil); err != nil {
			return nil, err
		}
		c.GetClientCertificate = load
	}
	return c, nil
}
