package handlers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryErrorOfTheStoreAndTheEdgeHasAnAnswer walks the exported errors of both packages:
// each must have a row in the table of problems, or be turned into another error before the
// table sees it. An error without either would be answered 500.
func TestEveryErrorOfTheStoreAndTheEdgeHasAnAnswer(t *testing.T) {
	t.Parallel()
	elsewhere := map[string]string{
		"edge.ErrUnavailable":         "it is tokenstore.ErrUnavailable",
		"edge.ErrNoToken":             "bearer and shownToken",
		"edge.ErrTwoTokens":           "bearer, shownToken and sessionsShown",
		"edge.ErrProof":               "checkProof makes it a proofError",
		"edge.ErrScope":               "of edge.Middleware alone",
		"tokenstore.ErrExpired":       "edge makes it edge.ErrExpired",
		"tokenstore.ErrSuperseded":    "admit and rotate",
		"tokenstore.ErrNoSession":     "whoever names a session",
		"tokenstore.ErrRevoked":       "rotate",
		"tokenstore.ErrReuse":         "rotate",
		"tokenstore.ErrRollback":      "rotate",
		"tokenstore.ErrForeign":       "rotate",
		"tokenstore.ErrKeyBinding":    "rotate",
		"tokenstore.ErrTooLarge":      "renew",
		"tokenstore.ErrScope":         "refreshGrant; /auth/refresh takes no scope",
		"tokenstore.ErrCursor":        "listSessions",
		"tokenstore.ErrID":            "endSession",
		"tokenstore.ErrNoClient":      "authenticate",
		"tokenstore.ErrClientSecret":  "authenticate",
		"tokenstore.ErrAccountExists": "of a command alone",
		"tokenstore.ErrClientExists":  "of a command alone",
		"tokenstore.ErrKeyActive":     "of a command alone",
		"tokenstore.ErrShards":        "of the start alone",
	}
	rows := map[string]bool{}
	for _, row := range fieldsOfRows(t, "errors.go", "problems") {
		if of, ok := row.(*ast.SelectorExpr); ok {
			if pkg, ok := of.X.(*ast.Ident); ok {
				rows[pkg.Name+"."+of.Sel.Name] = true
			}
		}
	}
	if !rows["tokenstore.ErrUnavailable"] {
		t.Fatalf("the table was not found: %v", rows)
	}
	for _, pkg := range []string{"tokenstore", "edge"} {
		names := exportedErrors(t, filepath.Join("..", pkg))
		if len(names) < 5 {
			t.Errorf("%s: only %v were found", pkg, names)
		}
		for _, name := range names {
			name = pkg + "." + name
			switch _, turned := elsewhere[name]; {
			case rows[name] == turned && turned:
				t.Errorf("%s has a row in problems, and is said to need none", name)
			case !rows[name] && !turned:
				t.Errorf("%s has no row in problems: give it one, or say here where it becomes another error", name)
			}
			delete(elsewhere, name)
		}
	}
	for name := range elsewhere {
		t.Errorf("there is no %s", name)
	}
}

// fieldsOfRows returns the first field of each row of a table, a variable in a file.
func fieldsOfRows(t *testing.T, file, variable string) (list []ast.Expr) {
	t.Helper()
	source, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range variables(source) {
		if v.Names[0].Name != variable {
			continue
		}
		for _, row := range v.Values[0].(*ast.CompositeLit).Elts {
			list = append(list, row.(*ast.CompositeLit).Elts[0])
		}
	}
	return list
}

// exportedErrors returns the names of the variables Err... of the package in a folder.
func exportedErrors(t *testing.T, folder string) (list []string) {
	t.Helper()
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		source, err := parser.ParseFile(token.NewFileSet(), filepath.Join(folder, file.Name()), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range variables(source) {
			for _, name := range v.Names {
				if strings.HasPrefix(name.Name, "Err") {
					list = append(list, name.Name)
				}
			}
		}
	}
	return list
}

// variables returns the package's variables that a file declares.
func variables(file *ast.File) (list []*ast.ValueSpec) {
	for _, d := range file.Decls {
		if d, ok := d.(*ast.GenDecl); ok && d.Tok == token.VAR {
			for _, s := range d.Specs {
				list = append(list, s.(*ast.ValueSpec))
			}
		}
	}
	return list
}
