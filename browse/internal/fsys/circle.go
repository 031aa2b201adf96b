package fsys

// Circle notices when a chain comes back to where it was, after a few rounds of
// it at most and without memory (Brent's way).
type Circle struct {
	mark        uint32
	steps, turn uint64
}

// Closed takes the next link of the chain.
func (c *Circle) Closed(n uint32) bool {
	if c.turn > 0 && n == c.mark {
		return true
	}
	if c.steps++; c.steps >= c.turn {
		c.mark, c.turn, c.steps = n, 2*c.turn+1, 0
	}
	return false
}
