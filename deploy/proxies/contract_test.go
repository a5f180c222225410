//go:build unix

package proxies_test

func startTraefik(w *world)   { w.Skip() }
func startEnvoyHTTP(w *world) { w.Skip() }
func startEnvoyGRPC(w *world) { w.Skip() }
