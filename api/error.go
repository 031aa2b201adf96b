package api

// Exit statuses of the command contract.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotProven   = 3
	ExitRefused     = 4
	ExitWrongSecret = 5
	ExitDamaged     = 6
	ExitTarget      = 7
	ExitBusy        = 8
	ExitInterrupted = 130
)

// Error is a problem document (RFC 9457) with what a CLI needs: the exit
// status and a hint. It implements error.
type Error struct {
	Status int      `json:"status,omitempty" doc:"HTTP status; none where no server was asked"`
	Title  string   `json:"title"`
	Detail string   `json:"detail" doc:"lower-case, operation first"`
	Exit   int      `json:"exit" doc:"exit status of the command contract"`
	Hint   string   `json:"hint,omitempty" doc:"what to do"`
	Items  []string `json:"items,omitempty" doc:"e.g. the recovery points that hold a secret"`
}

func (e *Error) Error() string {
	if e.Detail != "" {
		return e.Detail
	}
	return e.Title
}
