package tokenstore

// PoolStats is how the connections to Redis are doing, over all its nodes.
type PoolStats struct {
	Open     int    // connections
	Idle     int    // of these, unused
	Waits    uint64 // times that a connection had to be waited for
	Timeouts uint64 // times that none came free in time
}

// PoolStats returns how the connections to Redis are doing. The counts wrap at
// 2^32, as a restart would: to Prometheus both are a reset.
func (s *Store) PoolStats() PoolStats {
	p := s.rdb.PoolStats()
	return PoolStats{Open: int(p.TotalConns), Idle: int(p.IdleConns), Waits: uint64(p.WaitCount), Timeouts: uint64(p.Timeouts)}
}
