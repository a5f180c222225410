package tokenstore

import "reflect"

// ScriptInfo is one script of a store.
type ScriptInfo struct {
	Name   string
	Hash   string
	Writes bool
	Once   bool // it keeps its answer
}

// AllScripts lists the scripts of a store by reflection, so that a test that asks for all
// of them cannot leave out a new one.
func (s *Store) AllScripts() []ScriptInfo {
	fields := reflect.ValueOf(s.scripts)
	list := make([]ScriptInfo, fields.NumField())
	for i := range list {
		sc := fields.Field(i).Elem()
		lua := sc.FieldByName("lua")
		effect := effect(sc.FieldByName("effect").Int())
		list[i] = ScriptInfo{
			Name:   sc.FieldByName("name").String(),
			Hash:   lua.Elem().FieldByName("hash").String(),
			Writes: effect != reads,
			Once:   effect == writesOnce,
		}
	}
	return list
}

// SkewPad is how much longer a denial lasts than the tokens it names.
const SkewPad = skewPad

// RevocationsWaiting is how many revocations wait for an exchange with Redis.
func RevocationsWaiting(s *Store) int {
	s.revocations.mu.Lock()
	defer s.revocations.mu.Unlock()
	return len(s.revocations.waiting)
}
