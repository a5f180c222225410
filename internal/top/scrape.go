package top

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/latchkey-auth/latchkey/internal/terminal"
)

const (
	scrapeTimeout = 3 * time.Second
	maxScrape     = 8 << 20 // bytes of one answer
)

// sample is what one replica said of itself, or why it did not.
type sample struct {
	addr     string
	at       time.Time
	err      error
	families map[string]*dto.MetricFamily
}

// scraper reads /metrics.
type scraper struct{ client *http.Client }

func newScraper() *scraper {
	return &scraper{client: &http.Client{Timeout: scrapeTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}}
}

// all reads every replica, at once. The error is of the addresses; what a
// replica did not answer is in its sample.
func (s *scraper) all(ctx context.Context, addrs []string) ([]sample, error) {
	list, err := resolve(ctx, addrs)
	if err != nil {
		return nil, err
	}
	samples := make([]sample, len(list))
	var wg sync.WaitGroup
	for i, addr := range list {
		wg.Go(func() { samples[i] = s.one(ctx, addr) })
	}
	wg.Wait()
	return samples, nil
}

func (s *scraper) one(ctx context.Context, addr string) sample {
	n := sample{addr: addr, at: time.Now()}
	n.families, n.err = s.read(ctx, "http://"+addr+"/metrics")
	if n.err == nil && n.families["latchkey_build_info"] == nil {
		n.err = errors.New("not an admin listener of Latchkey")
	}
	return n
}

func (s *scraper) read(ctx context.Context, target string) (map[string]*dto.MetricFamily, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, terminal.NetError(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/metrics answers %d: is this the admin listener?", resp.StatusCode)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(io.LimitReader(resp.Body, maxScrape))
	if err != nil {
		return nil, fmt.Errorf("not metrics: %w", err)
	}
	return families, nil
}

// where picks series by their labels.
type where func(label func(name string) string) bool

func all(func(string) string) bool { return true }

// is picks the series whose label has the value.
func is(name, value string) where {
	return func(label func(string) string) bool { return label(name) == value }
}

// sum adds the values of the series of a metric that are picked.
func (n sample) sum(name string, pick where) float64 {
	var v float64
	for _, m := range n.families[name].GetMetric() {
		if pick(labels(m)) {
			v += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return v
}

func labels(m *dto.Metric) func(string) string {
	return func(name string) string {
		for _, l := range m.GetLabel() {
			if l.GetName() == name {
				return l.GetValue()
			}
		}
		return ""
	}
}

// values are those of a label of a metric.
func (n sample) values(name, label string) []string {
	var list []string
	for _, m := range n.families[name].GetMetric() {
		list = append(list, labels(m)(label))
	}
	return list
}

// interval is one replica over a while.
type interval struct{ before, now sample }

// rate is how much a counter rose a second. A restart counts from zero.
func (i interval) rate(name string, pick where) float64 {
	seconds := i.now.at.Sub(i.before.at).Seconds()
	if i.before.families == nil || seconds <= 0 {
		return 0
	}
	now, before := i.now.sum(name, pick), i.before.sum(name, pick)
	if now < before {
		before = 0
	}
	return (now - before) / seconds
}

// buckets adds to counts, by upper bound, what fell into a histogram's buckets
// up to there meanwhile.
func (i interval) buckets(name string, pick where, counts map[float64]float64) {
	if i.before.families == nil {
		return
	}
	read := func(n sample) map[float64]float64 {
		c := map[float64]float64{}
		for _, m := range n.families[name].GetMetric() {
			if pick(labels(m)) {
				for _, b := range m.GetHistogram().GetBucket() {
					c[b.GetUpperBound()] += float64(b.GetCumulativeCount())
				}
			}
		}
		return c
	}
	before := read(i.before)
	for bound, n := range read(i.now) {
		if n >= before[bound] {
			n -= before[bound]
		}
		counts[bound] += n
	}
}

// quantile is that of cumulative buckets, by linear interpolation inside one as
// Prometheus does it; NaN without observations.
func quantile(q float64, counts map[float64]float64) float64 {
	total := counts[math.Inf(1)]
	if total == 0 {
		return math.NaN()
	}
	bounds := sortedKeys(counts)
	rank, low, below := q*total, 0.0, 0.0
	for _, b := range bounds {
		if n := counts[b]; n >= rank {
			if math.IsInf(b, 1) || n == below {
				return low
			}
			return low + (b-low)*(rank-below)/(n-below)
		}
		low, below = b, counts[b]
	}
	return low
}
