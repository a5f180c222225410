package tokenstore

import (
	"crypto/tls"
	"crypto/x509"
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
}

// config returns what to connect with: base, which is the URL's, as these
// options change it; nil stays nil. one says that there is a single server, so
// that the URL's host is the name in its certificate. Otherwise that name is the host
// which is dialed: what a Cluster's nodes or Sentinels announce. Error: [OptionError].
func (o TLSOptions) config(base *tls.Config, one bool) (*tls.Config, error) {
	if base == nil {
		return nil, nil
	}
	c := base.Clone()
	c.MinVersion = tls.VersionTLS12
	if !one {
		c.ServerName = ""
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, badTLS("the authorities' certificates for Redis: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, badTLS("the authorities' certificates for Redis: no certificate in %s", o.CAFile)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, badTLS("a client certificate for Redis needs both its file and its key's")
	}
	if o.CertFile != "" {
		load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
			if err != nil {
				return nil, badTLS("the client certificate for Redis: %w", err)
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

func badTLS(format string, args ...any) error {
	return &OptionError{OptionTLS, fmt.Errorf(format, args...)}
}
