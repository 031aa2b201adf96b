package retention

import (
	"math"
	"slices"
	"time"
)

// Stored is a listed recovery point and what was stored for it, in bytes.
type Stored struct {
	Point
	Bytes int64 // written for it
	Alone int64 // that nothing else needs: deleting it alone frees them
}

// Outlook is what is to be expected if everything goes on as it did.
type Outlook struct {
	Observed int           // recovery points that it rests on
	Every    time.Duration // between two of them, the median
	PerDay   int64         // bytes stored in a day, on average
	Typical  int64         // the same by the median recovery point: one large one does not count
	Ahead    []Expected
}

// Expected is what is to be expected at a time.
type Expected struct {
	In     time.Duration // from now on
	Bytes  int64
	Points int // that are kept
}

const (
	growthWindow = 30   // recovery points that the rates rest on
	mostFuture   = 1000 // recovery points that are thought up, at most
)

// Expect says what a machine will hold at so many times ahead, given what it
// holds now, in bytes, and its recovery points in the order of its log, the
// oldest first. ok is false where fewer than three give no rate.
//
// It thinks up recovery points at the pace of the last ones and decides which
// stay. What was overwritten since the oldest that stays is held, less what of
// the recovery points that went in between nothing else needs. So what is held
// grows until the oldest moves on, and then no more.
func Expect(held int64, points []Stored, r Rules, now time.Time, loc *time.Location, ahead []time.Duration) (o Outlook, ok bool, err error) {
	o, alone, ok := observe(points)
	if !ok || len(ahead) == 0 {
		return o, ok, nil
	}
	every := max(o.Every, slices.Max(ahead)/mostFuture, time.Minute)
	perPoint := float64(o.PerDay) * every.Hours() / 24
	model := func(kept []Point) float64 {
		if len(kept) == 0 {
			return 0
		}
		span := max(kept[len(kept)-1].Time.Sub(kept[0].Time), 0)
		between := max(float64(span)/float64(every)-float64(len(kept)-1), 0)
		return perPoint*float64(span)/float64(every) - alone*perPoint*between
	}
	all := make([]Point, len(points))
	for i, p := range points {
		all[i] = p.Point
	}
	today := model(all)
	next := all[len(all)-1]
	next.Pins, next.LegalHolds, next.Needed, next.Tags, next.RetainUntil = nil, nil, nil, nil, time.Time{}
	next.Incomplete = false
	if next.Time.After(now) {
		next.Time = now
	}
	for _, d := range slices.Sorted(slices.Values(ahead)) {
		at := now.Add(d)
		for n := next.Time.Add(every); !n.After(at) && len(all) < len(points)+mostFuture+len(ahead); n = n.Add(every) {
			next.Time, next.Sequence = n, next.Sequence+1
			next.ID = n.UTC().Format("20060102T150405.000000000")
			all = append(all, next)
		}
		decisions, err := Decide(all, r, at, loc)
		if err != nil {
			return o, false, err
		}
		var kept []Point
		for k, p := range all {
			if decisions[k].Keep {
				kept = append(kept, p)
			}
		}
		bytes := float64(held) + model(kept) - today
		o.Ahead = append(o.Ahead, Expected{In: d, Bytes: clampBytes(bytes), Points: len(kept)})
	}
	return o, true, nil
}

// observe takes the rates from the last recovery points. The first of all was
// stored as a whole and says nothing of what comes.
func observe(points []Stored) (o Outlook, alone float64, ok bool) {
	if len(points) < 3 {
		return o, 0, false
	}
	last := points[max(1, len(points)-growthWindow):]
	before := points[len(points)-len(last)-1]
	span := last[len(last)-1].Time.Sub(before.Time)
	if span <= 0 {
		return o, 0, false // clocks that went back give no rate
	}
	var bytes []int64
	var gaps []time.Duration
	var sum, own float64
	at := before.Time
	for i, p := range last {
		bytes = append(bytes, max(p.Bytes, 0))
		gaps = append(gaps, max(p.Time.Sub(at), 0))
		at = p.Time
		sum += float64(max(p.Bytes, 0))
		if i < len(last)-1 { // of the newest nothing was overwritten yet
			own += float64(min(max(p.Alone, 0), max(p.Bytes, 0)))
		}
	}
	if others := sum - float64(bytes[len(bytes)-1]); others > 0 {
		alone = own / others
	}
	days := span.Hours() / 24
	o.Observed = len(last)
	o.Every = median(gaps)
	if o.Every <= 0 {
		o.Every = span / time.Duration(len(last))
	}
	o.PerDay = clampBytes(sum / days)
	o.Typical = clampBytes(float64(median(bytes)) * float64(len(last)) / days)
	return o, alone, o.Every > 0
}

func median[T int64 | time.Duration](v []T) T {
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return s[n/2-1] + (s[n/2]-s[n/2-1])/2
	}
	return s[len(s)/2]
}

func clampBytes(v float64) int64 {
	switch {
	case !(v > 0): // NaN too
		return 0
	case v >= math.MaxInt64:
		return math.MaxInt64
	}
	return int64(v)
}

// FullIn is when so much free space is used up, by what is held now and
// expected later, the earliest first. ok is false where it is not within what
// is expected.
func FullIn(held, free int64, ahead []Expected) (in time.Duration, ok bool) {
	if free <= 0 {
		return 0, true
	}
	was := Expected{Bytes: held}
	for _, e := range ahead {
		if used := e.Bytes - held; used >= free {
			grown := float64(e.Bytes - was.Bytes)
			share := float64(free-(was.Bytes-held)) / grown
			return was.In + time.Duration(share*float64(e.In-was.In)), true
		}
		was = e
	}
	return 0, false
}
