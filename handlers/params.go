package handlers

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/jsontext"
)

// params are the members of a request's body, form or JSON alike. A parameter
// that is absent is the empty string (RFC 6749 section 3.1 treats an empty
// value as absent). The query is never read: what is in a URL is in logs.
type params map[string]string

// bind reads the body. Errors: a [requestError]; errMedia; a
// [http.MaxBytesError].
func bind(c *gin.Context) (params, error) {
	body, err := io.ReadAll(c.Request.Body)
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, err
	}
	if err != nil { // it ended early, came too slowly, or in broken chunks
		return nil, badRequest("The body could not be read")
	}
	if len(body) == 0 {
		return params{}, nil
	}
	kind, _, err := mime.ParseMediaType(c.GetHeader("Content-Type"))
	if err != nil {
		return nil, errMedia
	}
	switch kind {
	case "application/x-www-form-urlencoded":
		return formParams(string(body))
	case "application/json":
		return jsonParams(body)
	}
	return nil, errMedia
}

// maxParams is how many parameters a request may have. No endpoint knows as many;
// a body of nothing but names would cost fifty times its size.
const maxParams = 64

var (
	errManyParams = badRequest("The request has more than %d parameters", maxParams)
	// errCharacters: a decoder would put U+FFFD in its place, and different passwords
	// would become one.
	errCharacters = badRequest("The body is not UTF-8, or has an unpaired surrogate escape, as of U+D800")
)

func formParams(body string) (params, error) {
	if strings.Count(body, "&") >= maxParams {
		return nil, errManyParams
	}
	values, err := url.ParseQuery(body)
	if err != nil {
		return nil, badRequest("The form is malformed")
	}
	p := make(params, len(values))
	for name, v := range values {
		if len(v) > 1 { // RFC 6749 section 3.2
			return nil, badRequest("A parameter was sent twice")
		}
		if !utf8.ValidString(name) || !utf8.ValidString(v[0]) {
			return nil, errCharacters
		}
		p[name] = v[0]
	}
	return p, nil
}

// jsonParams reads one object of strings and booleans. A member that is there
// twice is refused: two readers could each take another.
func jsonParams(body []byte) (params, error) {
	if !jsontext.Whole(body) {
		return nil, errCharacters
	}
	malformed := badRequest("The JSON is malformed: one object of strings and booleans is expected")
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, malformed
	}
	p := params{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, malformed
		}
		if len(p) == maxParams {
			return nil, errManyParams
		}
		if _, twice := p[name]; twice {
			return nil, badRequest("A parameter was sent twice")
		}
		value, err := dec.Token()
		if err != nil {
			return nil, malformed
		}
		switch v := value.(type) {
		case string:
			p[name] = v
		case bool:
			p[name] = map[bool]string{true: "true", false: "false"}[v]
		case nil:
			p[name] = ""
		default:
			return nil, malformed
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, malformed
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed
	}
	return p, nil
}

// flag reads a boolean parameter; absent is false.
func (p params) flag(name string) (bool, error) {
	switch p[name] {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, badRequest("%s is neither true nor false", name)
}

// queryParam reads a parameter of the URL that is no secret; absent is "".
func queryParam(c *gin.Context, name string) (string, error) {
	switch values := c.QueryArray(name); len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	}
	return "", badRequest("A parameter was sent twice")
}
