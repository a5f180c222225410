package replica

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
)

// keysDir is a folder of key files, one key each: .pem, .jwk and .json. The file "active" names the key that signs;
// without it, the last file by name that holds a private key signs.
type keysDir struct {
	path   string
	public bool              // the key that signs must have a public key
	seen   [sha256.Size]byte // of the content that was last read
	logged string            // the fault that was logged last
	faults atomic.Int64
}

func newKeysDir(cfg *config.Config) *keysDir {
	return &keysDir{path: cfg.KeysDir, public: cfg.StatusList}
}

// KeySet is the content of a folder of keys.
type KeySet struct {
	Keys    []*accesstoken.Key
	Retired []*accesstoken.Key // they verify nothing; logout knows their tokens as issued here
	Active  string             // kid of the key that signs
	Exposed []string           // warnings about files with a private key that other users can read
}

// ReadKeysDir reads the folder that LATCHKEY_KEYS_DIR names.
func ReadKeysDir(cfg *config.Config) (*KeySet, error) { return newKeysDir(cfg).read() }

const (
	// activeFile names the file that signs, or its kid.
	activeFile = "active"
	// retiredPrefix begins the names of keys that no longer verify. By them a logout knows tokens that were issued here.
	retiredPrefix = "retired-"
	// maxKeyFile (bytes) and maxKeyFiles limit what is read, so that a wrong path does not fill the memory. A verifier
	// reads at most a hundred keys of a set.
	maxKeyFile  = 64 << 10
	maxKeyFiles = 100
)

// keyFile is one file of the folder.
type keyFile struct {
	name string
	text []byte
}

// read returns the keys of the folder if its content has changed since the last read that succeeded, else nil. It
// compares content, not times, because Kubernetes swaps a symlink.
func (f *keysDir) read() (*KeySet, error) {
	files, err := f.files()
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	for _, file := range files {
		fmt.Fprintf(sum, "%q%q", file.name, file.text)
	}
	digest := [sha256.Size]byte(sum.Sum(nil))
	if digest == f.seen {
		return nil, nil
	}
	set, err := f.parse(files)
	if err != nil {
		return nil, err
	}
	f.seen = digest
	return set, nil
}

// files returns the files of the folder in the order of their names.
func (f *keysDir) files() ([]keyFile, error) {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return nil, fmt.Errorf("LATCHKEY_KEYS_DIR cannot be read: %w", err)
	}
	var files []keyFile
	for _, e := range entries {
		// Kubernetes keeps its own files under names that begin with a dot.
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if len(files) == maxKeyFiles {
			return nil, fmt.Errorf("LATCHKEY_KEYS_DIR holds more than %d files", maxKeyFiles)
		}
		text, err := readKeyFile(filepath.Join(f.path, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("LATCHKEY_KEYS_DIR: %s: %w", e.Name(), err)
		}
		files = append(files, keyFile{e.Name(), text})
	}
	return files, nil
}

// parse returns the keys in the files and which of them signs.
func (f *keysDir) parse(files []keyFile) (*KeySet, error) {
	set := &KeySet{}
	byName := map[string]*accesstoken.Key{} // by file name and by kid
	named, last := "", ""                   // in the file "active"; the last that can sign
	for _, file := range files {
		if file.name == activeFile {
			named = strings.TrimSpace(string(file.text))
			continue
		}
		key, err := parseKeyFile(file)
		if err != nil {
			return nil, fmt.Errorf("LATCHKEY_KEYS_DIR: %s: %w", file.name, err)
		}
		if !key.VerifiesOnly() {
			if exposed := config.ExposedFile("LATCHKEY_KEYS_DIR", filepath.Join(f.path, file.name)); exposed != "" {
				set.Exposed = append(set.Exposed, exposed)
			}
		}
		if strings.HasPrefix(file.name, retiredPrefix) {
			set.Retired = append(set.Retired, key)
			continue
		}
		set.Keys = append(set.Keys, key)
		byName[file.name], byName[key.ID()] = key, key
		if !key.VerifiesOnly() {
			last = file.name
		}
	}
	if named == "" {
		named = last
	}
	if err := f.checkActive(named, byName[named]); err != nil {
		return nil, err
	}
	set.Active = byName[named].ID()
	return set, nil
}

func parseKeyFile(file keyFile) (*accesstoken.Key, error) {
	switch filepath.Ext(file.name) {
	case ".pem", ".jwk", ".json":
		return accesstoken.ParseKeyFile(file.text)
	default:
		return nil, errors.New("not a key; name keys .pem, .jwk or .json, and put nothing else there")
	}
}

// checkActive returns why the key of that name cannot sign, or nil. A nil key is one that is not there.
func (f *keysDir) checkActive(name string, key *accesstoken.Key) error {
	switch {
	case name == "":
		return errors.New("LATCHKEY_KEYS_DIR has no key to sign with; put a private key there")
	case key == nil:
		return errors.New("LATCHKEY_KEYS_DIR: the file active names no file and no kid that is there")
	case key.VerifiesOnly():
		return errors.New("LATCHKEY_KEYS_DIR: the file active names a public key, which cannot sign")
	case f.public && key.Algorithm() == accesstoken.HS256:
		return errors.New("LATCHKEY_KEYS_DIR: with LATCHKEY_STATUS_LIST=true, what signs must have a public key, or nobody could check a list")
	}
	return nil
}

func readKeyFile(path string) ([]byte, error) {
	file, err := os.Open(path) // #nosec G304 -- the operator names the folder
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("larger than %d KiB", maxKeyFile>>10)
	}
	return text, nil
}

// fault counts a fault and reports whether it differs from the one before.
func (f *keysDir) fault(err error) bool {
	f.faults.Add(1)
	differs := f.logged != err.Error()
	f.logged = err.Error()
	return differs
}
