package shell

import "testing"

func TestPrecedenceOfExitStatuses(t *testing.T) {
	order := []int{130, 2, 4, 8, 7, 1, 6, 5, 3, 0}
	for i, x := range order {
		for j, y := range order {
			if got, want := worse(x, y), order[min(i, j)]; got != want {
				t.Errorf("of %d and %d: %d, want %d", x, y, got, want)
			}
		}
	}
	if got := worse(3, 77); got != 1 {
		t.Errorf("a status outside the contract gives %d, want 1", got)
	}
}
