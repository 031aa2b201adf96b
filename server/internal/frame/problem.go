package frame

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/importing"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/policy"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prune"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/server/internal/show"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/target"
)

// Problem is api.Error as an answer.
type Problem api.Error

// Error is the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType makes the answer a problem document (RFC 9457).
func (p *Problem) ContentType(ct string) string {
	if ct == "application/json" {
		return "application/problem+json"
	}
	return ct
}

// What the framework finds wrong with a request becomes a Problem too. Its
// validation likes to repeat the value that it did not accept: the value may be
// a secret, so it is dropped.
func init() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		p := NewProblem(status, 0, "request: "+lowerFirst(msg))
		for _, err := range errs {
			var own *Problem
			if errors.As(err, &own) {
				return own
			}
			var d huma.ErrorDetailer
			if errors.As(err, &d) {
				detail := d.ErrorDetail()
				text := detail.Message
				if strings.HasPrefix(text, "invalid character") {
					text = "it is not JSON"
				}
				p.Items = append(p.Items, strings.TrimPrefix(detail.Location+": "+text, ": "))
			}
		}
		if len(p.Items) == 1 {
			p.Detail += ": " + p.Items[0]
			p.Items = nil
		}
		return p
	}
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// NewProblem makes a problem; exit 0 is what follows from the status.
func NewProblem(status, exit int, detail string) *Problem {
	if exit == 0 {
		switch status {
		case http.StatusBadRequest, http.StatusUnprocessableEntity:
			exit = api.ExitUsage
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict:
			exit = api.ExitRefused
		default:
			exit = api.ExitFailed
		}
	}
	return &Problem{Status: status, Title: http.StatusText(status), Detail: detail, Exit: exit}
}

// Usage says that the request is wrong.
func Usage(format string, args ...any) error {
	return NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, fmt.Sprintf(format, args...))
}

// Refused says no.
func Refused(format string, args ...any) *Problem {
	return NewProblem(http.StatusConflict, api.ExitRefused, fmt.Sprintf(format, args...))
}

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

func (h *hinted) Hint() string { return h.hint }

// Hint adds to an error what the user can do about it.
func Hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// rule says what an error means to who asked.
type rule struct {
	errs   []error
	status int
	exit   int
	hint   string
}

const deletedHint = "another host or installation deleted it: 'lockstep point list' shows what is left, and 'lockstep point pin' keeps one"

// rules are tried in order; the first that fits counts.
var rules = []rule{
	{
		[]error{target.ErrNotEmpty},
		http.StatusConflict, api.ExitTarget, "name another target, or --force to write over what it holds",
	},
	{
		[]error{target.ErrTooSmall, target.ErrNotNamed, target.ErrInUse},
		http.StatusConflict, api.ExitTarget, "name another target",
	},
	{
		[]error{job.ErrBusy},
		http.StatusConflict, api.ExitBusy, "'lockstep job list' shows what is running",
	},
	{
		[]error{repository.ErrConflict, repository.ErrBusy},
		http.StatusConflict, api.ExitBusy, "another host or process writes the same machine; try again when it has ended",
	},
	{[]error{prune.ErrClock}, http.StatusConflict, api.ExitRefused, ""}, // the error has its own hint
	{
		[]error{prune.ErrLost},
		http.StatusConflict, api.ExitRefused, "'lockstep verify' says which; put the log back from a copy, or have the catalog forget them with 'lockstep catalog rebuild'",
	},
	{[]error{prune.ErrChanged}, http.StatusConflict, api.ExitBusy, "the same command again decides anew"},
	{[]error{prune.ErrInUse}, http.StatusConflict, api.ExitBusy, "it is read just now: wait for that to end, or end it"},
	{[]error{prune.ErrKept}, http.StatusConflict, api.ExitRefused, "'lockstep point unpin' and 'lockstep point unhold' take that back"},
	{
		[]error{prove.ErrMarkUnread},
		http.StatusConflict, api.ExitRefused, "put the object back from a copy of the repository; 'lockstep point delete' deletes single recovery points meanwhile",
	},
	{[]error{policy.ErrInvalid, custody.ErrStatement}, http.StatusUnprocessableEntity, api.ExitUsage, ""},
	{[]error{job.ErrCanceled, job.ErrShutdown}, http.StatusServiceUnavailable, api.ExitInterrupted, ""},
	{[]error{job.ErrNotFound}, http.StatusNotFound, api.ExitFailed, "'lockstep job list' shows the jobs"},
	{[]error{job.ErrEnded, job.ErrElsewhere}, http.StatusConflict, api.ExitRefused, ""},
	{
		[]error{diskcrypt.ErrMistyped},
		http.StatusUnprocessableEntity, api.ExitWrongSecret,
		"compare it with where it is written: a BitLocker recovery password is eight groups of six digits",
	},
	{
		[]error{diskcrypt.ErrWrongSecret},
		http.StatusUnprocessableEntity, api.ExitWrongSecret,
		"check that it is the secret of this machine and volume; --keep takes it into custody all the same",
	},
	{
		[]error{keymanager.ErrDamaged},
		http.StatusInternalServerError, api.ExitDamaged, "a backup of the data directory brings it back; without one, the recovery kit does: 'lockstep-recover secrets'",
	},
	{[]error{keymanager.ErrSealed}, http.StatusServiceUnavailable, api.ExitFailed, "give it back the file that seals it; see docs/operations.md"},
	{[]error{keymanager.ErrUnavailable, custody.ErrManager}, http.StatusServiceUnavailable, api.ExitFailed, "backups go on meanwhile; prove afterwards with 'lockstep prove --all'"},
	{[]error{keymanager.ErrNotFound}, http.StatusNotFound, api.ExitFailed, "'lockstep secret list' shows what is in custody"},
	{[]error{keymanager.ErrDisabled, keymanager.ErrDestroyed}, http.StatusConflict, api.ExitRefused, ""},
	{[]error{keymanager.ErrInvalid}, http.StatusUnprocessableEntity, api.ExitUsage, ""},
	{[]error{catalog.ErrExists}, http.StatusConflict, api.ExitRefused, "'lockstep machine list' shows the names that are taken"},
	{[]error{catalog.ErrAmbiguous, catalog.ErrBadRef}, http.StatusUnprocessableEntity, api.ExitUsage, "'lockstep point list' shows the recovery points"},
	{[]error{target.ErrLarger}, http.StatusConflict, api.ExitTarget, "--larger takes it: what lies behind the disk stays as it is"},
	{[]error{restore.ErrNoPart}, http.StatusUnprocessableEntity, api.ExitUsage, "'lockstep point show' shows the partitions and volumes of a recovery point"},
	{[]error{restore.ErrNoDisk}, http.StatusUnprocessableEntity, api.ExitUsage, "'lockstep point show' shows the disks of a recovery point"},
	{[]error{source.ErrInUse}, http.StatusConflict, api.ExitRefused, "shut it down or name a snapshot of it; --allow-live reads it as it is, for what that is worth"},
	{[]error{backup.ErrFuture}, http.StatusUnprocessableEntity, api.ExitUsage, "give the time that the image shows"},
	{
		[]error{backup.ErrOrder},
		http.StatusConflict, api.ExitRefused, "import history under a name of its own, such as NAME-history: what is written last is the newest and the next backup's parent",
	},
	{[]error{importing.ErrFormat}, http.StatusUnprocessableEntity, api.ExitUsage, "say what it is: --format raw, qcow2, vmdk, vpc (VHD) or vhdx"},
	{[]error{importing.ErrLayout}, http.StatusUnprocessableEntity, api.ExitUsage, "such as --time-from name:web01-%Y-%m-%d"},
	{[]error{importing.ErrImplausible}, http.StatusUnprocessableEntity, api.ExitUsage, "give the time that the image shows; --time-from name:LAYOUT takes it from the names"},
	{
		[]error{importing.ErrSameTime},
		http.StatusConflict, api.ExitRefused, "--time-from name:LAYOUT with %H, %M and %S can tell them apart; or move one of them to another folder",
	},
	{
		[]error{importing.ErrOther},
		http.StatusConflict, api.ExitRefused, "one time is one recovery point: correct the image's time, or import it under a name of its own, such as NAME-history",
	},
	{
		[]error{source.ErrDamaged},
		http.StatusUnprocessableEntity, api.ExitFailed, "what is missing would be backed up as zeroes: copy the image again from where it came; 'qemu-img check' says more, and with -r all repairs a copy's tables, not lost data",
	},
	{[]error{source.ErrNotFound, source.ErrUnsupported}, http.StatusUnprocessableEntity, api.ExitFailed, ""},
	{[]error{restore.ErrDeleted}, http.StatusConflict, api.ExitFailed, deletedHint},
	// Before damage: what the store had no room for is not damaged.
	{[]error{store.ErrFull}, http.StatusInsufficientStorage, api.ExitFailed, "free space in the repository and run it again: what was stored is kept and not stored twice"},
	{[]error{source.ErrSizeChanged}, http.StatusConflict, api.ExitFailed, "back it up again when nobody changes its size"},
	{[]error{repository.ErrDamaged, repository.ErrUntrusted}, http.StatusInternalServerError, api.ExitDamaged, "'lockstep verify' says which recovery points are affected"},
	{[]error{audit.ErrTampered}, http.StatusInternalServerError, api.ExitDamaged, "'lockstep audit verify' says where; keep the folder as evidence"},
	{[]error{repository.ErrReadOnly}, http.StatusServiceUnavailable, api.ExitFailed, ""},
	{[]error{repository.ErrNoKey}, http.StatusServiceUnavailable, api.ExitFailed, "the identity in the data directory's keys/ opens the repository, or the one in the recovery kit"},
	{[]error{repository.ErrNotFound, catalog.ErrNotFound, store.ErrNotExist}, http.StatusNotFound, api.ExitFailed, ""},
	{[]error{prove.ErrUnread}, http.StatusConflict, api.ExitRefused, "'lockstep catalog rebuild' reads it; until then nobody knows what needs the secret"},
	{[]error{custody.ErrProverDied}, http.StatusInternalServerError, api.ExitFailed, "a header may ask for more memory than there is; 'lockstep prove' tries again"},
	{[]error{custody.ErrProverStart}, http.StatusServiceUnavailable, api.ExitFailed, ""},
	{[]error{context.Canceled}, http.StatusServiceUnavailable, api.ExitInterrupted, ""},
	{[]error{fs.ErrPermission}, http.StatusForbidden, api.ExitFailed, "the host on which the engine runs opens it, with the rights that it has there"},
}

// ProblemOf says what an error means to who asked.
func ProblemOf(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		var h interface{ Hint() string }
		if p.Hint == "" && errors.As(err, &h) {
			said := *p
			said.Hint = h.Hint()
			return &said
		}
		return p
	}
	p = NewProblem(http.StatusInternalServerError, api.ExitFailed, "")
	var held *keymanager.HeldError
	var transition *keymanager.TransitionError
	switch {
	case errors.As(err, &held):
		p = Refused("")
		for _, h := range held.Holds {
			p.Items = append(p.Items, h.Point)
		}
		slices.Sort(p.Items)
		p.Items = slices.Compact(p.Items)
		p.Hint = "recovery points need it: it can be destroyed when they are gone ('lockstep point delete')"
	case errors.As(err, &transition):
		p = Refused("")
	case source.IsUnreadable(err):
		p.Hint = "--allow-incomplete records what cannot be read and goes on"
	default:
		for _, r := range rules {
			if slices.ContainsFunc(r.errs, func(e error) bool { return errors.Is(err, e) }) {
				p = NewProblem(r.status, r.exit, "")
				p.Hint = r.hint
				break
			}
		}
	}
	p.Detail = show.OneLine(err.Error())
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		p.Hint = h.Hint()
	}
	return p
}

// OutcomeOf is what the audit log calls an error.
func OutcomeOf(err error) string {
	if err == nil {
		return audit.Done
	}
	switch ProblemOf(err).Exit {
	case api.ExitUsage, api.ExitRefused, api.ExitWrongSecret, api.ExitTarget, api.ExitBusy:
		return audit.Refused
	default:
		return audit.Failed
	}
}

// WriteProblem answers with a problem.
func WriteProblem(w http.ResponseWriter, p *Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
