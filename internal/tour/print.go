package tour

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/latchkey-auth/latchkey/internal/terminal"
)

// newTour prepares the tour of a fleet.
func newTour(f *Fleet, p *terminal.Printer) *tour {
	t := &tour{
		print: p, redis: f.redis, jars: map[string]http.CookieJar{}, began: time.Now(),
		secrets: tokenPattern(),
		// A connection for each request, as with curl: none is left for the end to wait for.
		wire: &http.Transport{DisableKeepAlives: true},
	}
	for _, r := range f.replicas {
		t.replicas = append(t.replicas, "http://"+r.Addr())
	}
	if addr := f.replicas[0].AdminAddr(); addr != "" {
		t.admin = "http://" + addr
	}
	return t
}

// tokenPattern matches an access token or a refresh token, or a good part of one.
func tokenPattern() *regexp.Regexp {
	return regexp.MustCompile(`eyJ[\w.-]{20,}|lkr1_[\w-]{20,}`)
}

// short names a token without giving it away: its kind and its last characters,
// which are of a signature.
func (t *tour) short(token string) string {
	kind := "eyJ"
	if strings.HasPrefix(token, "lkr1_") {
		kind = "lkr1_"
	}
	if len(token) < 40 {
		return kind + "…"
	}
	return kind + "…" + token[len(token)-6:]
}

// shown is text with its tokens cut short.
func (t *tour) shown(s string) string { return t.secrets.ReplaceAllStringFunc(s, t.short) }

// greet says what runs.
func (t *tour) greet() {
	p := t.print
	p.Line(p.Bold("Latchkey: the life of a session on " + terminal.Plural(len(t.replicas), "replica")))
	p.Line("Log in at one, refresh at another, log out at a third: then none takes its tokens again.")
	p.Line("")
	for i, base := range t.replicas {
		p.Text(fmt.Sprintf("%-10s  %s", "replica "+replicaName(i), base))
	}
	p.Text(fmt.Sprintf("%-10s  %s/docs, to try the API out in a browser", "page", t.replicas[0]))
	p.Text(fmt.Sprintf("%-10s  %s/metrics, /healthz, /readyz (of replica A)", "admin", t.admin))
	p.Text(fmt.Sprintf("%-10s  %s, embedded: what it holds goes when this ends", "Redis", t.redis.Addr()))
	p.Text(fmt.Sprintf("%-10s  %s, password %s", "user", DemoUser, DemoPassword))
	p.Line("")
	p.Line("Every command can be pasted into another terminal, in order, while this runs.")
	p.Line("They write a few files, so begin there with:")
	p.Command(`cd "$(mktemp -d)"`)
}

// answered prints an answer: who, the status, and the body.
func (t *tour) answered(at int, a answer) {
	p := t.print
	p.Text(fmt.Sprintf("%s  %d  %s", replicaName(at), a.status, t.shown(summary(a))))
	if a.cookie != nil {
		p.Text("        " + t.shown("Set-Cookie: "+a.cookie.Raw))
	}
}

// summary is an answer's body, or of an error the two parts that tell.
func summary(a answer) string {
	var e struct {
		Error       string
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(a.body, &e); err == nil && e.Error != "" {
		return e.Error + ": " + e.Description
	}
	return strings.TrimSpace(string(a.body))
}

// conclude sums up and says what to do next. exit says that nothing goes on serving.
func (t *tour) conclude(exit bool) {
	p, first, last := t.print, t.replicas[0], t.replicas[len(t.replicas)-1]
	p.Line("")
	p.Line(p.Green("✓ ") + p.Bold(fmt.Sprintf("All %d steps passed in %.1f s.", len(t.steps()), time.Since(t.began).Seconds())))
	if exit {
		p.Line("")
		p.Line("Without --exit the replicas go on serving, so that you can paste the commands.")
		return
	}
	p.Line("")
	p.Line(p.Bold("Try next"))
	p.Text("Steal a refresh token. Log in, and let a thief copy the cookie; the owner refreshes, and the\n" +
		"10 seconds pass in which an old token is taken for a late request of the owner's.")
	p.Command("curl -s -c jar -d username=" + DemoUser + " -d password=" + DemoPassword + " " + first + "/auth/token; cp jar stolen")
	p.Command("curl -s -X POST -b jar -c jar " + last + "/auth/refresh; sleep 11")
	p.Text("Now the thief shows the copy. It is refused, and so is the owner from here on: nobody can tell\n" +
		"which of the two is the owner, so the session ends, and a login tells.")
	p.Command("curl -s -X POST -b stolen " + first + "/auth/refresh")
	p.Command("curl -s -X POST -b jar " + last + "/auth/refresh")
	p.Line("")
	p.Text("See what replica A counted:")
	p.Command("curl -s " + t.admin + "/metrics | grep '^latchkey_security'")
	p.Line("")
	p.Text("Run it on your own Redis: latchkey serve (README.md). Every endpoint is in docs/api.md.")
}
