package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// secretFile is a file that the value of a secret was read from.
type secretFile struct{ setting, path string }

// ExposedFile returns a warning, for the log at start, if a file that must be kept secret
// can be read by users of this machine who are neither its owner nor in its group, else "".
// what names the file: a setting. Symlinks are followed, such as those of a mounted
// Kubernetes Secret, and no file is exposed in a folder that others may not enter.
// On Windows, where modes do not say who may read, it returns "".
func ExposedFile(what, path string) string {
	mode, ok := readableByOthers(path)
	if !ok || runtime.GOOS == "windows" {
		return ""
	}
	return fmt.Sprintf("%s: every user of this machine can read %s (mode %04o): "+
		"let only the user that Latchkey runs as read it, as with: chmod 600 %[2]s", what, path, mode)
}

func readableByOthers(path string) (fs.FileMode, bool) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return 0, false // whoever reads the file reports it
	}
	file, err := os.Stat(path)
	if err != nil || file.Mode().Perm()&0o004 == 0 {
		return 0, false
	}
	folder, err := os.Stat(filepath.Dir(path))
	return file.Mode().Perm(), err == nil && folder.Mode().Perm()&0o001 != 0
}
