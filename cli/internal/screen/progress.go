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
	bar   *mpb.Bar

	phase, unit string
	total       int64
	last        int
	warned      map[string]bool
}

// NewProgress shows events on out, with bars where it is a terminal. Quiet
// leaves nothing but warnings.
func NewProgress(out io.Writer, terminal, quiet bool) *Progress {
	p := &Progress{out: out, quiet: quiet, warned: map[string]bool{}}
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
	if p.bar != nil && !p.bar.AbortedOrCompleted() {
		if _, err := io.WriteString(p.bars, line); err == nil {
			return
		}
	}
	_, _ = io.WriteString(p.out, line)
}

func (p *Progress) advance(e api.JobEvent) {
	done, total := max(e.Done, 0), max(e.Total, 0)
	if p.bar == nil || e.Phase != p.phase || e.Unit != p.unit || (total > 0) != (p.total > 0) {
		p.finishBar()
		p.phase, p.unit, p.total = e.Phase, e.Unit, total
		p.bar = p.bars.AddBar(total, decorators(e.Phase, e.Unit, total > 0)...)
	}
	if total != p.total {
		p.total = total
		p.bar.SetTotal(total, false)
	}
	p.bar.SetCurrent(done)
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

// finishBar ends the bar where it stands.
func (p *Progress) finishBar() {
	if p.bar == nil {
		return
	}
	if p.total > 0 && p.bar.Current() < p.total {
		p.bar.Abort(false)
	} else {
		p.bar.SetTotal(-1, true)
	}
}

// Close draws the bars a last time.
func (p *Progress) Close() {
	if p.bars == nil {
		return
	}
	p.finishBar()
	p.bar = nil
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
