package chaos

import (
	"testing"
	"time"
)

// The judge is judged first: a history with a fault must be found faulty.
func TestTheJudge(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	logout := Logout{Asked: 10 * ms, AnsweredAt: 20 * ms, Confirmed: true}
	unknown := Logout{Asked: 10 * ms, AnsweredAt: 20 * ms}
	refresh := func(from, to time.Duration, generation int, successor string) Check {
		return Check{Asked: from, AnsweredAt: to, Answer: Accepted, Generation: generation, Successor: successor}
	}
	kept := func(from, to time.Duration, generation int) Check {
		return Check{Asked: from, AnsweredAt: to, Answer: Accepted, Generation: generation, Kept: true}
	}
	check := func(from, to time.Duration, a Answer) Check { return Check{Asked: from, AnsweredAt: to, Answer: a} }
	for name, tt := range map[string]struct {
		logouts  []Logout
		checks   []Check
		violated bool
	}{
		"accepted, logged out, refused":              {[]Logout{logout}, []Check{check(1*ms, 2*ms, Accepted), check(21*ms, 22*ms, Refused)}, false},
		"accepted after the logout":                  {[]Logout{logout}, []Check{check(21*ms, 22*ms, Accepted)}, true},
		"accepted by an answer asked for before":     {[]Logout{logout}, []Check{check(19*ms, 90*ms, Accepted)}, false},
		"no answer after the logout":                 {[]Logout{logout}, []Check{check(21*ms, 22*ms, Silent)}, false},
		"refused while the logout is under way":      {[]Logout{logout}, []Check{check(11*ms, 12*ms, Refused), check(13*ms, 14*ms, Accepted)}, false},
		"refused before any logout":                  {[]Logout{logout}, []Check{check(1*ms, 2*ms, Refused)}, true},
		"refused without a logout":                   {nil, []Check{check(1*ms, 2*ms, Refused)}, true},
		"accepted after a logout of unknown fate":    {[]Logout{unknown}, []Check{check(21*ms, 22*ms, Accepted)}, false},
		"refused after a logout of unknown fate":     {[]Logout{unknown}, []Check{check(21*ms, 22*ms, Refused)}, false},
		"sent again and confirmed, then accepted":    {[]Logout{unknown, {Asked: 30 * ms, AnsweredAt: 40 * ms, Confirmed: true}}, []Check{check(25*ms, 26*ms, Accepted), check(41*ms, 42*ms, Accepted)}, true},
		"logged out twice, accepted between the two": {[]Logout{logout, {Asked: 30 * ms, AnsweredAt: 40 * ms, Confirmed: true}}, []Check{check(25*ms, 26*ms, Accepted)}, true},
		"two tabs, one successor":                    {nil, []Check{refresh(1*ms, 5*ms, 1, "b"), refresh(2*ms, 4*ms, 1, "b"), refresh(6*ms, 7*ms, 2, "c")}, false},
		"kept, then rotated, then its parent":        {nil, []Check{refresh(1*ms, 2*ms, 1, "b"), kept(3*ms, 4*ms, 2), kept(3*ms, 5*ms, 2), refresh(6*ms, 7*ms, 2, "c"), refresh(8*ms, 9*ms, 2, "c")}, false},
		"two tabs, two successors":                   {nil, []Check{refresh(1*ms, 5*ms, 1, "b"), refresh(2*ms, 4*ms, 1, "x")}, true},
		"a refresh after the logout":                 {[]Logout{logout}, []Check{refresh(21*ms, 22*ms, 1, "b")}, true},
		"refused after a theft":                      {[]Logout{{Asked: 10 * ms, AnsweredAt: 20 * ms, Confirmed: true, Cause: "theft"}}, []Check{check(21*ms, 22*ms, Refused)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := NewHistory()
			h.Session()
			for _, l := range tt.logouts {
				h.LoggedOut(l)
			}
			h.Checked(tt.checks...)
			v := h.Judge()
			if v.Violated() != tt.violated {
				t.Errorf("violated = %v\n%s", v.Violated(), v)
			}
			// The two judges agree.
			if (v.Accepted+v.FalseLogouts+len(v.Forked) > 0) != (len(v.Impossible) > 0) {
				t.Errorf("counting and porcupine disagree:\n%s", v)
			}
		})
	}
}

// What only the model sees: a spent token that is kept, and a first one.
func TestTheModelSeesATokenThatIsKeptWrongly(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for name, checks := range map[string][]Check{
		"spent":     {{Generation: 1, Successor: "b"}, {Generation: 2, Successor: "c"}, {Generation: 2, Kept: true}},
		"the first": {{Generation: 1, Kept: true}},
	} {
		h := NewHistory()
		h.Session()
		for i, c := range checks {
			c.Asked, c.Answer = time.Duration(i)*ms, Accepted
			c.AnsweredAt = c.Asked + ms/2
			h.Checked(c)
		}
		if v := h.Judge(); len(v.Impossible) != 1 || !v.Violated() {
			t.Errorf("%s:\n%s\n%s", name, v, h.Describe(0))
		}
	}
}

// What only the model sees.
func TestTheModelSeesARefreshTokenThatWorksAgain(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	h := NewHistory()
	h.Session()
	for i, generation := range []int{1, 2, 3, 1} {
		at := time.Duration(i) * ms
		h.Checked(Check{Asked: at, AnsweredAt: at + ms/2, Answer: Accepted, Generation: generation, Successor: string(rune('a' + generation))})
	}
	if v := h.Judge(); len(v.Impossible) != 1 || !v.Violated() {
		t.Errorf("a token that is two generations old was accepted:\n%s\n%s", v, h.Describe(0))
	}
}
