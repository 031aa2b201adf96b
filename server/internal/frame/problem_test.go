package frame

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

// TestFullStoreSaysWhatToDo: no room is neither damage nor a riddle.
func TestFullStoreSaysWhatToDo(t *testing.T) {
	p := ProblemOf(fmt.Errorf("back up vm: write disk vda: %w: %w", store.ErrFull, repository.ErrDamaged))
	if p.Exit != api.ExitFailed || !strings.Contains(p.Hint, "free space") || !strings.Contains(p.Hint, "is kept") {
		t.Errorf("%+v", *p)
	}
}
