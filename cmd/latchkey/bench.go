package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/latchkey-auth/latchkey/internal/bench"
	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/internal/tour"
)

// benchOptions are the flags and arguments of `latchkey bench`.
type benchOptions struct {
	urls     []string // none: replicas of our own, on an embedded Redis
	username string
	file     string       // of users, or "-"
	users    []bench.User // who log in; sessions go round among them
	sessions int          // 0: one of each user of the file, else 100
	parallel int
	duration time.Duration // of checks, and of refreshes
	timeout  time.Duration // of everything
	json     bool
}

func newBench() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench [URL...]",
		Short: "Log in, verify, refresh and log out under load, and tell how long it took",
		Long: `Log in a number of sessions, check their access tokens, refresh them and log them out,
as fast as the given number of clients gets answers, and show how long that took. At
the end every token is shown again to every URL: none may be accepted.

URLs are those of replicas or of a balancer, such as https://auth.example.com. Users
made for this come from a file, --users, or from standard input if that is -: one on a
line, username:password, where the first colon ends the username. Each logs in once, or
in turn as often as --sessions says. With --username instead, all sessions are of that
one account, whose password is asked for, or read from standard input. A user who gets
more than LATCHKEY_SESSIONS_PER_USER (100) loses the first ones while they are in use.

Without a URL, three replicas are started on an embedded Redis, which is slower than a
real one, and as many users are made as there are sessions.

For a first impression: client and server that share a machine share its CPUs, and a
client that waits for each answer does not see what a queue would do. A session gets a
new refresh token once in LATCHKEY_REFRESH_GRACE; its other refreshes write nothing to
Redis, and with few sessions those are most.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.urls = args
			if err := o.check(); err != nil {
				return err
			}
			if err := o.findUsers(cmd); err != nil {
				return err
			}
			return o.run(cmd)
		},
	}
	refusePasswordFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.file, "users", "", "with a URL: a file of the users to log in, username:password on each line; - is standard input")
	f.StringVar(&o.username, "username", "", "with a URL: the one account to log in to, in place of --users")
	f.IntVar(&o.sessions, "sessions", 0, "how many sessions to log in, 1 to 100000; 0: one of each of --users, else 100")
	f.IntVar(&o.parallel, "parallel", 16, "how many clients work at once, 1 to 1000; four of them log in")
	f.DurationVar(&o.duration, "duration", 5*time.Second, "how long to check tokens, and then to refresh, 100ms to 10m each")
	f.DurationVar(&o.timeout, "timeout", 2*time.Minute, "when to give up, whatever is under way")
	f.BoolVar(&o.json, "json", false, "print the result as JSON, and nothing else")
	return cmd
}

// check reports the first flag that makes no sense.
func (o *benchOptions) check() error {
	switch {
	case o.sessions < 0 || o.sessions > maxSessions:
		return fmt.Errorf("--sessions %d: from 1 to %d", o.sessions, maxSessions)
	case o.parallel < 1 || o.parallel > 1000:
		return fmt.Errorf("--parallel %d: from 1 to 1000", o.parallel)
	case o.duration < 100*time.Millisecond || o.duration > 10*time.Minute:
		return fmt.Errorf("--duration %s: from 100ms to 10m", o.duration)
	case o.timeout <= 0:
		return fmt.Errorf("--timeout %s: more than nothing", o.timeout)
	case o.username != "" && o.file != "":
		return errors.New("--username is one account and --users a file of them: give one of the two")
	case len(o.urls) > 0 && o.username == "" && o.file == "":
		return errors.New("whom to log in is missing: give --users and a file of usernames and passwords, or --username and one account")
	case len(o.urls) == 0 && o.username+o.file != "":
		return errors.New("--users and --username go with a URL; without one, users are made for the run")
	}
	for i, text := range o.urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%q is not a URL to load; write it as http://127.0.0.1:8080", text)
		}
		o.urls[i] = strings.TrimRight(text, "/")
	}
	return nil
}

// askPassword asks for the password of an account that exists.
func askPassword(cmd *cobra.Command, username string) (string, error) {
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return readHidden(cmd.Context(), f, cmd.ErrOrStderr(), "Password of "+terminal.Printable(username)+": ")
	}
	return readPassword(cmd, username)
}

// run starts replicas if there is no URL, and loads them.
func (o *benchOptions) run(cmd *cobra.Command) (err error) {
	b := bench.Options{
		URLs: o.urls, Title: strings.Join(o.urls, ", "), Users: o.users, Sessions: o.sessions, Parallel: o.parallel,
		Duration: o.duration, Timeout: o.timeout, JSON: o.json, Out: cmd.OutOrStdout(), Progress: cmd.ErrOrStderr(),
	}
	if len(o.urls) == 0 {
		f, startErr := tour.Start(cmd.Context(), tour.Options{Addr: "127.0.0.1:0", Replicas: 3, Log: io.Discard, Version: buildVersion()})
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		b.URLs, b.Title = f.URLs(), "three replicas in this process, on an embedded Redis"
		b.Store, b.HashOf = f.Store(), tour.DemoUser
		for n := range o.sessions {
			b.Users = append(b.Users, bench.User{Name: fmt.Sprintf("bench-%d", n), Password: tour.DemoPassword})
		}
	}
	return shown(bench.Run(cmd.Context(), b), bench.ErrFaults)
}
