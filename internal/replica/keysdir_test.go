package replica

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
)

func pemOf(t *testing.T, key ed25519.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestWhichKeyOfAFolderSigns(t *testing.T) {
	t.Parallel()
	keys := map[string]string{}
	for _, name := range []string{"a", "b"} {
		key := ed25519.NewKeyFromSeed([]byte(strings.Repeat(name, 32)))
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = string(pemOf(t, key))
		keys[name+" public"] = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string // "a", or the error
	}{
		{"the last by name", map[string]string{"2026-01.pem": keys["b"], "2026-02.pem": keys["a"]}, "a"},
		{"the last that can", map[string]string{"1.pem": keys["a"], "2.pem": keys["b public"]}, "a"},
		{"by active", map[string]string{"1.pem": keys["a"], "2.pem": keys["b"], "active": "1.pem\n"}, "a"},
		{"names with a dot are passed over", map[string]string{"1.pem": keys["a"], ".2.pem": "x"}, "a"},
		{"a retired one does not sign", map[string]string{"1.pem": keys["a"], "retired-2.pem": keys["b"]}, "a"},
		{"a retired one is not active", map[string]string{"1.pem": keys["a"], "retired-2.pem": keys["b"], "active": "retired-2.pem"}, "names no file and no kid"},
		{"none", nil, "no key to sign with"},
		{"public ones alone", map[string]string{"1.pem": keys["a public"]}, "no key to sign with"},
		{"active names nothing", map[string]string{"1.pem": keys["a"], "active": "3.pem"}, "names no file and no kid"},
		{"active names a public key", map[string]string{"1.pem": keys["a"], "2.pem": keys["b public"], "active": "2.pem"}, "cannot sign"},
		{"a bad file", map[string]string{"1.pem": keys["a"], "2.pem": "x"}, "2.pem: accesstoken: unusable signing key: neither PEM nor a JWK"},
		{"another file", map[string]string{"1.pem": keys["a"], "1.pem~": keys["b"]}, "1.pem~: not a key"},
		{"a large file", map[string]string{"1.pem": keys["a"] + strings.Repeat(" ", maxKeyFile)}, "larger than 64 KiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			f := &keysDir{path: dir}
			set, err := f.read()
			if tt.want != "a" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, %v; want an error with %q", set, err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			only, err := (&keysDir{path: writeOne(t, keys["a"])}).read()
			if err != nil || set.Active != only.Active {
				t.Errorf("%s signs, want %s (%v)", set.Active, only.Active, err)
			}
			if again, err := f.read(); again != nil || err != nil {
				t.Errorf("nothing has changed, and it was read again: %v, %v", again, err)
			}
		})
	}
}

// A key of a folder whose name begins with retired- is recognised, and nothing else.
func TestARetiredKeyOfAFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, seed string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), pemOf(t, ed25519.NewKeyFromSeed([]byte(strings.Repeat(seed, 32)))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("2026-01.pem", "a")
	k := keeperOn(t, redistest.Mini(t))
	k.folder = &keysDir{path: dir}
	sync := func() {
		t.Helper()
		if err := k.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	old := k.ring.Active().ID()
	write("2026-02.pem", "b")
	if err := os.Rename(filepath.Join(dir, "2026-01.pem"), filepath.Join(dir, "retired-2026-01.pem")); err != nil {
		t.Fatal(err)
	}
	sync()
	if k.ring.Has(old) || !slices.Equal(k.ring.Retired(), []string{old}) {
		t.Errorf("verifies %v, recognised %v", k.ring.IDs(), k.ring.Retired())
	}
	if err := os.Remove(filepath.Join(dir, "retired-2026-01.pem")); err != nil {
		t.Fatal(err)
	}
	sync()
	if len(k.ring.Retired()) > 0 {
		t.Errorf("recognised %v", k.ring.Retired())
	}
}

// With status lists, what signs them must be published.
func TestASecretOfAFolderSignsNoStatusLists(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	jwk := `{"kty":"oct","k":"` + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("k", 32))) + `"}`
	if err := os.WriteFile(filepath.Join(dir, "k.jwk"), []byte(jwk), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (&keysDir{path: dir}).read(); err != nil {
		t.Errorf("without status lists: %v", err)
	}
	if _, err := (&keysDir{path: dir, public: true}).read(); err == nil || !strings.Contains(err.Error(), "must have a public key") {
		t.Errorf("with status lists: %v", err)
	}
}

func writeOne(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "k.pem"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A replica warns of private keys that other users can read, and not of public ones.
func TestKeyFilesThatOthersCanReadAreWarnedOf(t *testing.T) {
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat("k", 32)))
	old := ed25519.NewKeyFromSeed([]byte(strings.Repeat("o", 32)))
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{
		"key.pem": pemOf(t, key), "retired-old.pem": pemOf(t, old), "public.pem": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chmod(path, 0o644), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	var logged bytes.Buffer
	k := &keyKeeper{ring: accesstoken.NewRing(), folder: &keysDir{path: dir}, log: slog.New(slog.NewTextHandler(&logged, nil))}
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"key.pem", "retired-old.pem"} {
		if !strings.Contains(logged.String(), "every user of this machine can read "+filepath.Join(dir, name)+" (mode 0644)") {
			t.Errorf("no warning of %s:\n%s", name, &logged)
		}
	}
	if strings.Contains(logged.String(), "public.pem") {
		t.Errorf("a warning of a public key:\n%s", &logged)
	}
}
