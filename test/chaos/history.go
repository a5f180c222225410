package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Answer is what a replica said of a token.
type Answer uint8

// The answers. Whoever gave none, or could not tell, said nothing that binds.
const (
	Silent Answer = iota
	Accepted
	Refused
)

// History is what was asked and answered, and when, by one monotonic clock. It
// is safe for concurrent use.
type History struct {
	start time.Time

	mu      sync.Mutex
	checks  [][]Check // by session
	logouts [][]Logout
}

// Check is one question whether a session's token is accepted.
type Check struct {
	Session           int
	Replica           int
	Asked, AnsweredAt time.Duration // by [History.Now]
	Answer            Answer
	// Of a refresh: the generation of the refresh token that was shown, from 1, and
	// whatever names the token that came for it. 0 is no refresh.
	Generation int
	Successor  string
	// Kept says that the token that was shown came back: the session had rotated within
	// the grace. Successor means nothing then.
	Kept bool
}

// Logout is one request to end a session. One that was not confirmed may have
// happened, may yet happen, or never.
type Logout struct {
	Session           int
	Asked, AnsweredAt time.Duration
	Confirmed         bool
	// Cause is what ended the session, or may have, where it was no logout: a theft
	// that was shown, a loss of data.
	Cause string
}

// NewHistory returns an empty history that begins now.
func NewHistory() *History { return &History{start: time.Now()} }

// Now is how long the history has lasted.
func (h *History) Now() time.Duration { return time.Since(h.start) }

// Session returns the number of a session that nobody has named yet.
func (h *History) Session() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks, h.logouts = append(h.checks, nil), append(h.logouts, nil)
	return len(h.checks) - 1
}

// Checked records answers to checks.
func (h *History) Checked(checks ...Check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range checks {
		h.checks[c.Session] = append(h.checks[c.Session], c)
	}
}

// LoggedOut records the answer to a logout.
func (h *History) LoggedOut(l Logout) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.logouts[l.Session] = append(h.logouts[l.Session], l)
}

// Lost is a session that was accepted after it had ended.
type Lost struct {
	Session         int
	Cause           string        // of its end; "" is a logout
	Ended           time.Duration // when that was confirmed
	Accepted, Until time.Duration // when the first and the last acceptance was asked for
}

// Verdict is what a history comes to.
type Verdict struct {
	Sessions     int
	Confirmed    int // logouts that were answered
	Unconfirmed  int // logouts of which it is unknown whether they happened
	Checks       int // answered, and asked after the session's logout had answered
	Earlier      int // answered, and asked before
	Silent       int // not answered, or with "unknown"
	Accepted     int // of Checks: none is right
	FalseLogouts int // refused before anybody had asked for a logout: none is right
	// Straddled is how many sessions one answer refused and a later one accepted
	// while their logout was under way. Nothing is promised of that time; it is
	// counted for interest.
	Straddled int
	// Lost are the sessions that Accepted is about.
	Lost []Lost
	// Forked are those in which one generation had two successors: none is right.
	Forked []int
	// Causes is how many sessions ended, or may have, for causes other than logouts.
	Causes map[string]int
	// Impossible are the sessions whose history porcupine finds no order for.
	Impossible []int
	// Undecided are those for which porcupine found neither in time.
	Undecided []int
	// Examples describes a few of the violations.
	Examples []string
}

// Violated reports whether a promise was broken.
func (v Verdict) Violated() bool {
	return v.Accepted > 0 || v.FalseLogouts > 0 || len(v.Forked) > 0 || len(v.Impossible) > 0 || len(v.Undecided) > 0
}

func (v Verdict) String() string {
	var b strings.Builder
	row := func(name string, value any) { fmt.Fprintf(&b, "%-46s %10v\n", name, value) }
	row("sessions", v.Sessions)
	row("logouts confirmed", v.Confirmed)
	row("logouts unknown", v.Unconfirmed)
	row("checks answered before the logout", v.Earlier)
	row("checks answered after the logout", v.Checks)
	row("checks with no answer", v.Silent)
	row("accepted after the logout", v.Accepted)
	row("false logouts", v.FalseLogouts)
	row("refused, then accepted, during the logout", v.Straddled)
	if n := len(v.Forked); n > 0 {
		row("generations with two successors", n)
	}
	for _, cause := range slices.Sorted(maps.Keys(v.Causes)) {
		row("ended or maybe so: "+cause, v.Causes[cause])
	}
	verdict := "linearizable"
	if n := len(v.Impossible); n > 0 {
		verdict = fmt.Sprintf("ILLEGAL in %d", n)
	}
	if n := len(v.Undecided); n > 0 {
		verdict += fmt.Sprintf(", undecided in %d", n)
	}
	row("porcupine", verdict)
	for _, e := range v.Examples {
		b.WriteString(e + "\n")
	}
	return b.String()
}

// patience is how long porcupine may think about one session.
const patience = 2 * time.Second

// maxExamples is how many violations a verdict describes.
const maxExamples = 10

// Judge judges the history as it is now.
func (h *History) Judge() Verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := Verdict{Sessions: len(h.checks), Causes: map[string]int{}}
	for session := range h.checks {
		h.count(session, &v)
		switch porcupine.CheckOperationsTimeout(oneSession(), operations(h.checks[session], h.logouts[session]), patience) {
		case porcupine.Illegal:
			v.Impossible = append(v.Impossible, session)
		case porcupine.Unknown:
			v.Undecided = append(v.Undecided, session)
		case porcupine.Ok:
		}
	}
	return v
}

// count counts one session's answers, without any model.
func (h *History) count(session int, v *Verdict) {
	const never = time.Duration(1<<63 - 1)
	begun, over := never, never
	lost := Lost{Session: session}
	causes := map[string]bool{}
	for _, l := range h.logouts[session] {
		begun = min(begun, l.Asked)
		if l.Confirmed && l.AnsweredAt < over {
			over, lost.Cause = l.AnsweredAt, l.Cause
		}
		switch {
		case l.Cause != "" && !causes[l.Cause]:
			causes[l.Cause] = true
			v.Causes[l.Cause]++
		case l.Cause != "":
		case l.Confirmed:
			v.Confirmed++
		default:
			v.Unconfirmed++
		}
	}
	lost.Ended, lost.Accepted = over, never
	successors := map[int]string{}
	refused := never
	for _, c := range h.checks[session] {
		if c.Answer == Refused {
			refused = min(refused, c.AnsweredAt)
		}
	}
	straddled := 0
	example := func(format string, args ...any) {
		if len(v.Examples) < maxExamples {
			v.Examples = append(v.Examples, fmt.Sprintf(format, args...))
		}
	}
	for _, c := range h.checks[session] {
		if c.Generation > 0 && c.Answer == Accepted && !c.Kept {
			if first, ok := successors[c.Generation]; ok && first != c.Successor {
				v.Forked = append(v.Forked, session)
				example("session %d: generation %d has two successors", session, c.Generation)
			}
			successors[c.Generation] = c.Successor
		}
		switch {
		case c.Answer == Silent:
			v.Silent++
			continue
		case c.Asked > over:
			v.Checks++
		default:
			v.Earlier++
		}
		switch {
		case c.Answer == Accepted && c.Asked > over:
			v.Accepted++
			lost.Accepted, lost.Until = min(lost.Accepted, c.Asked), max(lost.Until, c.Asked)
			example("session %d: accepted by replica %d, asked %v after the logout was answered (at %v)", session, c.Replica, c.Asked-over, over)
		case c.Answer == Accepted && c.Asked > refused:
			straddled = 1
		case c.Answer == Refused && c.AnsweredAt < begun:
			v.FalseLogouts++
			example("session %d: refused by replica %d at %v, before any logout", session, c.Replica, c.AnsweredAt)
		}
	}
	v.Straddled += straddled
	if lost.Accepted != never {
		v.Lost = append(v.Lost, lost)
	}
}

// Describe lists what was asked and answered of a session, in the order of asking.
func (h *History) Describe(session int) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	type line struct {
		at   time.Duration
		text string
	}
	var lines []line
	for _, l := range h.logouts[session] {
		what := cmp.Or(l.Cause, "logout")
		if !l.Confirmed {
			what += ", not confirmed"
		}
		lines = append(lines, line{l.Asked, fmt.Sprintf("%v - %v %s", l.Asked, l.AnsweredAt, what)})
	}
	for _, c := range h.checks[session] {
		what := "verify"
		if c.Generation > 0 {
			what = fmt.Sprintf("refresh %d", c.Generation)
			if c.Kept {
				what += ", which stays"
			}
		}
		answer := [...]string{Silent: "unknown", Accepted: "accepted", Refused: "refused"}[c.Answer]
		lines = append(lines, line{c.Asked, fmt.Sprintf("%v - %v %s at replica %d: %s %s", c.Asked, c.AnsweredAt, what, c.Replica, answer, c.Successor)})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return cmp.Compare(a.at, b.at) })
	var b strings.Builder
	fmt.Fprintf(&b, "session %d:\n", session)
	for _, l := range lines {
		b.WriteString("  " + l.text + "\n")
	}
	return b.String()
}

// step is what an operation does in the model.
type step struct {
	does       does
	generation int // of an accepted refresh, and its successor
	successor  string
	kept       bool // the token shown stays the current one
}

type does uint8

const (
	logoutBegins does = iota
	logoutEnds
	checkAccepts
	checkRefuses
)

// life is that of one session.
type life uint8

const (
	alive life = iota
	// ending: a logout was asked for. Replicas come to know of it one by one, and
	// until it is answered nothing is promised.
	ending
	dead
)

// state is that of one session, and the refresh token that is current as far as
// anybody was told.
type state struct {
	life       life
	generation int
	successor  string // the current token; "" for the first
}

// oneSession is the model: alive until a logout begins, dead when one has ended.
// While it is alive a refresh moves to the next generation, tells again of the last
// one that did, or leaves the current generation as it is.
func oneSession() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return state{generation: 1} },
		Step: func(s, in, _ any) (bool, any) {
			now, _ := s.(state)
			op, _ := in.(step)
			switch op.does {
			case logoutBegins:
				now.life = max(now.life, ending)
				return true, now
			case logoutEnds:
				was := now.life
				now.life = dead
				return was != alive, now
			case checkRefuses:
				return now.life != alive, now
			default:
				return now.accepts(op)
			}
		},
	}
}

// accepts is what an accepted check says of a session.
func (s state) accepts(op step) (bool, any) {
	switch {
	case s.life == dead:
		return false, s
	case op.generation == 0, s.life == ending: // a loss of data may have set it back
		return true, s
	case op.kept: // a login's first token rotates at once
		return op.generation == s.generation && op.generation > 1, s
	case op.generation == s.generation:
		s.generation, s.successor = op.generation+1, op.successor
		return true, s
	}
	return op.generation == s.generation-1 && op.successor == s.successor, s
}

// operations are one session's history as porcupine reads it. A logout begins
// when it is asked for and ends when it is answered; one that was not confirmed
// only begins. A check without an answer says nothing.
func operations(checks []Check, logouts []Logout) []porcupine.Operation {
	ops := make([]porcupine.Operation, 0, len(checks)+2*len(logouts))
	add := func(op step, from, to time.Duration) {
		ops = append(ops, porcupine.Operation{Input: op, Call: int64(from), Return: int64(to)})
	}
	for _, l := range logouts {
		add(step{does: logoutBegins}, l.Asked, l.Asked)
		if l.Confirmed {
			add(step{does: logoutEnds}, l.Asked, l.AnsweredAt)
		}
	}
	// Of those that were asked for at one moment and answered alike, the first
	// answer binds most: what explains it explains the others. Without this,
	// porcupine would try all their orders before it finds a history impossible.
	type alike struct {
		asked      time.Duration
		answer     Answer
		generation int
		successor  string
		kept       bool
	}
	first := map[alike]time.Duration{}
	for _, c := range checks {
		k := alike{c.Asked, c.Answer, c.Generation, c.Successor, c.Kept}
		if at, ok := first[k]; !ok || c.AnsweredAt < at {
			first[k] = c.AnsweredAt
		}
	}
	for k, at := range first {
		switch k.answer {
		case Accepted:
			add(step{checkAccepts, k.generation, k.successor, k.kept}, k.asked, at)
		case Refused:
			add(step{does: checkRefuses}, k.asked, at)
		case Silent:
		}
	}
	return ops
}
