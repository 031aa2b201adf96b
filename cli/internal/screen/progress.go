package screen

import (
	"fmt"
	"io"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/lockstep-backup/lockstep/api"
)

// Progress shows the events of one job: bars on a terminal, and on anything
// else messages and warnings only.
type Progress struct {
	out   io.Writer
	quiet bool
	bars  *mpb.Progress
	// each has a bar for each phase: disks are read side by side, so that their
	// events come in any order.
	each   map[barKey]*bar
	last   int
	warned map[string]bool
}

// barKey tells bars apart. A phase whose total becomes known gets another one.
type barKey struct {
	phase, unit string
	known       bool
}

type bar struct {
	*mpb.Bar
	total int64
}

// maxBars bounds what a job can draw.
const maxBars = 24

// NewProgress shows events on out, with bars where it is a terminal. Quiet
// leaves nothing but warnings.
func NewProgress(out io.Writer, terminal, quiet bool) *Progress {
	p := &Progress{out: out, quiet: quiet, each: map[barKey]*bar{}, warned: map[string]bool{}}
	if terminal && !quiet {
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.WithWidth(40))
	}
	return p
}

// Last is the number of the last event shown.
func (p *Progress) Last() int { return p.last }

// Event shows an event. It never fails; it has the form that api.Client wants.
func (p *Progress) Event(e api.JobEvent) error {
	p.last = max(p.last, e.N)
	switch e.Kind {
	case "warning":
		p.Warning(e.Message)
	case "message":
		if !p.quiet && e.Message != "" {
			p.Line(e.Message)
		}
	case "progress":
		if p.bars != nil {
			p.advance(e)
		}
	}
	return nil
}

// Warning shows a warning once, however often the job repeats it.
func (p *Progress) Warning(text string) {
	if text == "" || p.warned[text] {
		return
	}
	p.warned[text] = true
	p.Line("warning: " + text)
}

// Line shows a line above the bars.
func (p *Progress) Line(text string) {
	line := Clean(text) + "\n"
	if len(p.each) > 0 {
		if _, err := io.WriteString(p.bars, line); err == nil {
			return
		}
	}
	_, _ = io.WriteString(p.out, line)
}

func (p *Progress) advance(e api.JobEvent) {
	done, total := max(e.Done, 0), max(e.Total, 0)
	key := barKey{e.Phase, e.Unit, total > 0}
	b := p.each[key]
	if b == nil {
		if len(p.each) == maxBars {
			return
		}
		b = &bar{p.bars.AddBar(total, decorators(e.Phase, e.Unit, key.known)...), total}
		p.each[key] = b
	}
	if total != b.total {
		b.total = total
		b.SetTotal(total, false)
	}
	b.SetCurrent(done)
}

func decorators(phase, unit string, known bool) []mpb.BarOption {
	name := decor.Name(CleanLine(phase), decor.WC{W: 8, C: decor.DindentRight | decor.DextraSpace})
	var counter, speed decor.Decorator
	switch {
	case unit != "bytes" && known:
		counter, speed = decor.CountersNoUnit("%d / %d "+verbatim(unit)), decor.Name("")
	case unit != "bytes":
		counter, speed = decor.CurrentNoUnit("%d "+verbatim(unit)), decor.Name("")
	case known:
		counter, speed = decor.CountersKibiByte("% .1f / % .1f"), decor.AverageSpeed(decor.SizeB1024(0), "  % .1f")
	default:
		counter, speed = decor.CurrentKibiByte("% .1f"), decor.AverageSpeed(decor.SizeB1024(0), "  % .1f")
	}
	if !known {
		// Without a total there is nothing to fill.
		return []mpb.BarOption{
			mpb.BarFillerMiddleware(func(mpb.BarFiller) mpb.BarFiller {
				return mpb.BarFillerFunc(func(io.Writer, decor.Statistics) error { return nil })
			}),
			mpb.PrependDecorators(name, counter, speed),
		}
	}
	return []mpb.BarOption{
		mpb.PrependDecorators(name),
		mpb.AppendDecorators(decor.Percentage(decor.WC{W: 5}), decor.Name("  "), counter, speed,
			decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 8}), "")),
	}
}

// verbatim is text inside a format.
func verbatim(unit string) string {
	out := make([]rune, 0, len(unit))
	for _, r := range CleanLine(unit) {
		if r == '%' {
			out = append(out, r)
		}
		out = append(out, r)
	}
	return string(out)
}

// Close draws the bars a last time: full where the job succeeded, else as far
// as they came.
func (p *Progress) Close(succeeded bool) {
	if p.bars == nil {
		return
	}
	for _, b := range p.each {
		if succeeded {
			b.SetTotal(-1, true)
		} else {
			b.Abort(false)
		}
	}
	clear(p.each)
	p.bars.Wait()
}

// Describe says an event in words.
func Describe(e api.JobEvent) string {
	if e.Kind != "progress" {
		return e.Message
	}
	amount := func(n int64) string {
		if e.Unit == "bytes" {
			return Size(n)
		}
		return fmt.Sprint(n)
	}
	s := e.Phase + ": " + amount(e.Done)
	if e.Total > 0 {
		s += " of " + amount(e.Total)
	}
	if e.Unit != "" && e.Unit != "bytes" {
		s += " " + e.Unit
	}
	if e.Message != "" {
		s += ", " + e.Message
	}
	return s
}
