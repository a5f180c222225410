package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// printer lays the tour out: what can be pasted stands out, results are indented.
type printer struct {
	w      io.Writer
	colour bool
}

func (p *printer) paint(code, s string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p *printer) bold(s string) string  { return p.paint("1", s) }
func (p *printer) dim(s string) string   { return p.paint("2", s) }
func (p *printer) red(s string) string   { return p.paint("31", s) }
func (p *printer) green(s string) string { return p.paint("32", s) }
func (p *printer) cyan(s string) string  { return p.paint("36", s) }

func (p *printer) line(s string) { fmt.Fprintln(p.w, s) }

// text prints lines below a title.
func (p *printer) text(s string) { fmt.Fprintln(p.w, "   "+strings.ReplaceAll(s, "\n", "\n   ")) }

// command prints a shell command of one or more lines.
func (p *printer) command(s string) {
	for i, l := range strings.Split(s, "\n") {
		fmt.Fprintln(p.w, "   "+p.dim([]string{"$ ", "  "}[min(i, 1)])+p.cyan(l))
	}
}

// newTour prepares the tour of a fleet.
func newTour(f *fleet, p *printer) *tour {
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
	p.line(p.bold("Latchkey: the life of a session on " + plural(len(t.replicas), "replica")))
	p.line("Log in at one, refresh at another, log out at a third: then none takes its tokens again.")
	p.line("")
	for i, base := range t.replicas {
		p.text(fmt.Sprintf("%-10s  %s", "replica "+replicaName(i), base))
	}
	p.text(fmt.Sprintf("%-10s  %s/docs, to try the API out in a browser", "page", t.replicas[0]))
	p.text(fmt.Sprintf("%-10s  %s/metrics, /healthz, /readyz (of replica A)", "admin", t.admin))
	p.text(fmt.Sprintf("%-10s  %s, embedded: what it holds goes when this ends", "Redis", t.redis.Addr()))
	p.text(fmt.Sprintf("%-10s  %s, password %s", "user", demoUser, demoPassword))
	p.line("")
	p.line("Every command can be pasted into another terminal, in order, while this runs.")
	p.line("They write a few files, so begin there with:")
	p.command(`cd "$(mktemp -d)"`)
}

// answered prints an answer: who, the status, and the body.
func (t *tour) answered(at int, a tourAnswer) {
	p := t.print
	p.text(fmt.Sprintf("%s  %d  %s", replicaName(at), a.status, t.shown(summary(a))))
	if a.cookie != nil {
		p.text("        " + t.shown("Set-Cookie: "+a.cookie.Raw))
	}
}

// summary is an answer's body, or of an error the two parts that tell.
func summary(a tourAnswer) string {
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
	p.line("")
	p.line(p.green("✓ ") + p.bold(fmt.Sprintf("All %d steps passed in %.1f s.", len(t.steps()), time.Since(t.began).Seconds())))
	if exit {
		p.line("")
		p.line("Without --exit the replicas go on serving, so that you can paste the commands.")
		return
	}
	p.line("")
	p.line(p.bold("Try next"))
	p.text("Steal a refresh token. Log in, and let a thief copy the cookie; the owner refreshes, and the\n" +
		"10 seconds pass in which an old token is taken for a late request of the owner's.")
	p.command("curl -s -c jar -d username=" + demoUser + " -d password=" + demoPassword + " " + first + "/auth/token; cp jar stolen")
	p.command("curl -s -X POST -b jar -c jar " + last + "/auth/refresh; sleep 11")
	p.text("Now the thief shows the copy. It is refused, and so is the owner from here on: nobody can tell\n" +
		"which of the two is the owner, so the session ends, and a login tells.")
	p.command("curl -s -X POST -b stolen " + first + "/auth/refresh")
	p.command("curl -s -X POST -b jar " + last + "/auth/refresh")
	p.line("")
	p.text("See what replica A counted:")
	p.command("curl -s " + t.admin + "/metrics | grep '^latchkey_security'")
	p.line("")
	p.text("Run it on your own Redis: latchkey serve (README.md). Every endpoint is in docs/api.md.")
}

// plural counts things: 1 replica, 3 replicas.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
