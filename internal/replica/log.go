package replica

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/config"
)

// NewLogger returns the program's log, which also takes the messages of the Redis client.
func NewLogger(cfg *config.Config, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: cfg.Level()}
	var h slog.Handler = slog.NewJSONHandler(w, o)
	if cfg.LogFormat == "text" {
		h = slog.NewTextHandler(w, o)
	}
	if cfg.Traces != "off" {
		h = tracedLog{h}
	}
	logger := slog.New(h)
	redis.SetLogger(redisLog{logger})
	return logger
}

// LogWarnings logs each warning.
func LogWarnings(ctx context.Context, logger *slog.Logger, warnings []string) {
	for _, w := range warnings {
		logger.LogAttrs(ctx, slog.LevelWarn, w)
	}
}

// redisLog logs go-redis's messages at debug level: what they tell shows in the answers, the metrics and /readyz.
type redisLog struct{ log *slog.Logger }

// Printf implements the logger of go-redis.
func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.LogAttrs(ctx, slog.LevelDebug, "redis client", slog.String("message", fmt.Sprintf(format, v...)))
}
