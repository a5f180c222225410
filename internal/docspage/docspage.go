// Package docspage holds the page at /docs and everything that it loads: a few
// files of our own, and Swagger UI, which `make docs-assets` takes from the npm
// package that tools/npm pins. Nothing of it comes from another origin.
//
// A caller needs [Find]. The package serves nothing.
package docspage

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"path"
)

//go:embed index.html docs.js docs.css swagger-ui
var files embed.FS

// Policy is the Content-Security-Policy of the page and of its files: scripts and
// styles from this origin and none inline, images also within Swagger UI's style
// sheet.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// File is one file, as it is embedded.
type File struct {
	Type string // its media type
	text []byte
	gzip bool // text is compressed
}

// The files by the name under which the page asks for them.
func find(name string) (source, kind string) {
	switch name {
	case "":
		return "index.html", "text/html; charset=utf-8"
	case "docs.js":
		return name, "text/javascript; charset=utf-8"
	case "docs.css":
		return name, "text/css; charset=utf-8"
	case "swagger-ui-bundle.js":
		return "swagger-ui/swagger-ui-bundle.js.gz", "text/javascript; charset=utf-8"
	case "swagger-ui.css":
		return "swagger-ui/swagger-ui.css.gz", "text/css; charset=utf-8"
	case "favicon-32x32.png":
		return "swagger-ui/" + name, "image/png"
	case "LICENSE.txt", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt":
		return "swagger-ui/" + name, "text/plain; charset=utf-8"
	}
	return "", ""
}

// Find returns a file by the name that is asked for, "" being the page; false if
// there is none.
func Find(name string) (File, bool) {
	source, kind := find(name)
	text, err := files.ReadFile(source)
	return File{Type: kind, text: text, gzip: path.Ext(source) == ".gz"}, err == nil
}

// Encoded returns the bytes to send to a client, and whether they are compressed:
// only for one that accepts gzip, and only what is embedded so.
func (f File) Encoded(acceptsGzip bool) (text []byte, compressed bool, err error) {
	if !f.gzip || acceptsGzip {
		return f.text, f.gzip, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(f.text))
	if err != nil {
		return nil, false, fmt.Errorf("an embedded file: %w", err)
	}
	text, err = io.ReadAll(r)
	if err != nil {
		return nil, false, fmt.Errorf("an embedded file: %w", err)
	}
	return text, false, nil
}

// Compressed reports whether the answer depends on what the client accepts.
func (f File) Compressed() bool { return f.gzip }
