package command

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// bar is one line of progress on a terminal.
type bar struct {
	w  io.Writer // nil = not shown
	mu sync.Mutex

	phase string
	last  time.Time
	drawn bool
}

func (a *app) progress() *bar {
	if a.quiet || !a.env.StderrTerminal {
		return &bar{}
	}
	return &bar{w: a.env.Stderr}
}

func (b *bar) show(phase string, done, total int64) {
	if b.w == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if phase == b.phase && now.Sub(b.last) < 200*time.Millisecond {
		return
	}
	b.phase, b.last, b.drawn = phase, now, true
	switch {
	case total > 0:
		_, _ = fmt.Fprintf(b.w, "\r\x1b[K%s %3d %%", phase, done*100/total)
	default:
		_, _ = fmt.Fprintf(b.w, "\r\x1b[K%s %d", phase, done)
	}
}

func (b *bar) end() {
	if b.drawn {
		_, _ = fmt.Fprint(b.w, "\r\x1b[K")
	}
}
