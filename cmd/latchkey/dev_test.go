package main

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/terminal"
)

// The tests of dev are not parallel: each sets the process's one go-redis logger.

// noLeaks fails the test if it leaves goroutines behind.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// wholeToken matches an access or a refresh token that was printed in full, or
// enough of one to matter.
var wholeToken = regexp.MustCompile(`eyJ[\w-]{16,}|lkr1_[\w-]{16,}|[\w-]{40,}`)

func TestDevTour(t *testing.T) {
	for _, replicas := range []int{1, 2, 3, 5} {
		t.Run(terminal.Plural(replicas, "replica"), func(t *testing.T) {
			noLeaks(t)
			var out, log bytes.Buffer
			cmd := newRoot()
			cmd.SetArgs([]string{"dev", "--exit", "--addr", "127.0.0.1:0", "--replicas", fmt.Sprint(replicas)})
			cmd.SetOut(&out)
			cmd.SetErr(&log)
			if err := cmd.ExecuteContext(t.Context()); err != nil {
				t.Fatalf("dev --exit: %v\n%s%s", err, &out, &log)
			}
			text := out.String()
			if got := strings.Count(text, "   ✓ "); got != 9 {
				t.Errorf("%d steps were ticked off, want 9\n%s", got, text)
			}
			for _, want := range []string{
				"All 9 steps passed", "/auth/token | tee answer", `A  200  {"access_token":"eyJ…`, "Set-Cookie: refresh_token=lkr1_…",
				"401  invalid_token: The access token was revoked", "401  invalid_grant: Invalid refresh token",
				"expires in 15m", // 10 s more for clocks, less what the confirmation took
			} {
				if !strings.Contains(text, want) {
					t.Errorf("the tour lacks %q\n%s", want, text)
				}
			}
			if got := strings.Count(text, "401  invalid_token"); got != replicas {
				t.Errorf("the access token was refused by %d replicas, want %d", got, replicas)
			}
			if found := wholeToken.FindString(text); found != "" {
				t.Errorf("the tour shows a token: %s", found)
			}
			if strings.Contains(text, "\x1b") {
				t.Error("the tour is coloured, and its output is no terminal")
			}
			if log.Len() > 0 {
				t.Errorf("the replicas' log shows although nothing failed: %s", &log)
			}
		})
	}
}

func TestServeRefusesTheDevSecret(t *testing.T) {
	t.Setenv("LATCHKEY_SECRET", config.DevSecret)
	t.Setenv("LATCHKEY_ADDR", "127.0.0.1:0")
	t.Setenv("LATCHKEY_ADMIN_ADDR", "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a replica that started nevertheless would end at once, and without an error
	cmd := newRoot()
	cmd.SetArgs([]string{"serve"})
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(ctx)
	if err == nil || !strings.Contains(err.Error(), "published secret of `latchkey dev`") {
		t.Errorf("got %v, want a refusal", err)
	}
	if err != nil && strings.Contains(err.Error(), config.DevSecret) {
		t.Error("the refusal shows the secret")
	}
}
