package accesstoken

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Ring holds the keys under which tokens verify, and names the one that signs. It also
// holds retired keys, which only tell that a token was once issued here. It is safe for
// concurrent use; reads take no lock and see all of a change or nothing of it.
type Ring struct {
	write sync.Mutex // serializes changes
	state atomic.Pointer[ringState]
}

// ringState is never changed once it is published.
type ringState struct {
	keys map[string]*Key // by kid
	// byHeader finds a key by the encoded header of the tokens it signs, so that
	// the verifier need not decode what it wrote itself.
	byHeader map[string]*Key
	active   *Key
	retired  map[string]*Key // by kid; public halves alone
	removed  uint64          // how many keys were ever removed
}

// NewRing returns an empty ring.
func NewRing() *Ring {
	r := &Ring{}
	r.state.Store(&ringState{})
	return r
}

// Add makes tokens under k verify. It does not make k sign. Adding a kid that is
// there already changes nothing.
func (r *Ring) Add(k *Key) {
	r.change(func(s *ringState) {
		if s.keys[k.id] == nil {
			s.keys[k.id] = k
			s.byHeader[k.header] = k
		}
	})
}

// Activate makes the key kid sign from now on, and returns [ErrNoKey] if the ring
// does not have it, or only its public half.
func (r *Ring) Activate(kid string) error {
	var err error
	r.change(func(s *ringState) {
		if k := s.keys[kid]; k != nil && !k.VerifiesOnly() {
			s.active = k
		} else {
			err = ErrNoKey
		}
	})
	return err
}

// Rest makes nothing sign until a key is activated. Tokens verify as before.
func (r *Ring) Rest() {
	r.change(func(s *ringState) { s.active = nil })
}

// Remove ends the key kid: tokens under it no longer verify. If it was the active
// one, nothing can be signed until another is activated.
func (r *Ring) Remove(kid string) {
	r.change(func(s *ringState) {
		k := s.keys[kid]
		if k == nil {
			return
		}
		s.removed++
		delete(s.keys, kid)
		delete(s.byHeader, k.header)
		if s.active == k {
			s.active = nil
		}
	})
}

// Recognise keeps the public half of k as a retired key: [Verifier.Authentic] accepts its
// signatures, [Verifier.Verify] does not. It does not take k out of the keys that verify;
// see Remove.
func (r *Ring) Recognise(k *Key) {
	r.change(func(s *ringState) {
		if s.retired[k.id] == nil {
			s.retired[k.id] = k.publicHalf()
		}
	})
}

// Forget ends what Recognise began.
func (r *Ring) Forget(kid string) {
	r.change(func(s *ringState) { delete(s.retired, kid) })
}

// Retired returns the kids of the retired keys, sorted.
func (r *Ring) Retired() []string { return slices.Sorted(maps.Keys(r.state.Load().retired)) }

// Active returns the key that signs, nil if there is none.
func (r *Ring) Active() *Key { return r.state.Load().active }

// Key returns the key kid, nil if the ring does not have it.
func (r *Ring) Key(kid string) *Key { return r.state.Load().keys[kid] }

// Has tells whether the ring has the key kid.
func (r *Ring) Has(kid string) bool { return r.Key(kid) != nil }

// Removed counts the keys that were ever removed. Who remembers that a token
// verified must forget it when this moves.
func (r *Ring) Removed() uint64 { return r.state.Load().removed }

// IDs returns the kids of all keys, sorted.
func (r *Ring) IDs() []string { return slices.Sorted(maps.Keys(r.state.Load().keys)) }

// change publishes a copy of the state that edit has worked on.
func (r *Ring) change(edit func(*ringState)) {
	r.write.Lock()
	defer r.write.Unlock()
	old := r.state.Load()
	next := &ringState{
		keys:     make(map[string]*Key, len(old.keys)+1),
		byHeader: make(map[string]*Key, len(old.byHeader)+1),
		retired:  make(map[string]*Key, len(old.retired)+1),
		active:   old.active,
		removed:  old.removed,
	}
	maps.Copy(next.retired, old.retired)
	maps.Copy(next.keys, old.keys)
	maps.Copy(next.byHeader, old.byHeader)
	edit(next)
	r.state.Store(next)
}
