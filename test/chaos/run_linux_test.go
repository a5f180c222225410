package chaos

import (
	"cmp"
	"math/rand/v2"
	"os"
	"time"
)

// hearing is for how long an answer is waited for: longer than any pause.
const hearing = 10 * time.Second

func setting(name, standard string) string { return cmp.Or(os.Getenv(name), standard) }

func seeded(a, b uint64) *rand.Rand { return rand.New(rand.NewPCG(a, b)) } //nolint:gosec // seeded on purpose

// wait lets time pass: here it is what is tested.
func wait(d time.Duration) { <-time.After(d) }
