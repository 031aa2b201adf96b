package fsys

import "testing"

func TestCircle(t *testing.T) {
	for _, k := range []struct{ tail, loop int }{{0, 1}, {0, 2}, {1, 1}, {5, 3}, {1000, 1}, {0, 1000}, {1000, 777}} {
		var c Circle
		steps := 0
		for n := 0; !c.Closed(uint32(n)); steps++ {
			if n++; n == k.tail+k.loop {
				n = k.tail
			}
			if steps > 4*(k.tail+k.loop)+4 {
				t.Fatalf("%+v: not closed after %d steps", k, steps)
			}
		}
		if steps < k.tail+k.loop {
			t.Errorf("%+v: closed after %d steps", k, steps)
		}
	}
	var c Circle
	for n := range uint32(100_000) {
		if c.Closed(n) {
			t.Fatalf("a chain without a circle, closed at %d", n)
		}
	}
}
