package show

import (
	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/custody"
)

// Worst is the state of a machine.
func Worst(points []api.Point) string {
	states := make([]custody.State, 0, len(points))
	for _, p := range points {
		states = append(states, custody.State(p.State))
	}
	return string(custody.WorstState(states...))
}
