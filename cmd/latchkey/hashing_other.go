//go:build !linux

package main

import (
	"context"
	"errors"

	"github.com/latchkey-auth/latchkey/internal/credential"
)

const helperWorks = false

var errLinuxOnly = errors.New("only Linux has a priority for it")

func yieldCPU() error { return errLinuxOnly }

func runHelper(context.Context, *credential.Helper, split) error { return errLinuxOnly }
