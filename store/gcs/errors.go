package gcs

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"google.golang.org/api/googleapi"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

// ErrBucket says that the bucket is not there.
var ErrBucket = errors.New("bucket does not exist")

// ServiceError is what the service answered.
type ServiceError struct {
	Status int
	Reason string // of the service, may be empty
	after  time.Duration
}

func (e *ServiceError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("server answered with status %d", e.Status)
	}
	return fmt.Sprintf("server answered with status %d %s", e.Status, e.Reason)
}

// translate gives an error the store's meaning. The SDK's own text goes: it
// repeats the answer's body, whatever that is.
func translate(err error) error {
	if err == nil {
		return nil
	}
	if sign, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		return remote.WithHint(fmt.Errorf("%w: signing in failed: %.100q", store.ErrDenied, sign.ErrorCode),
			"sign in (gcloud auth application-default login), or name another key by credentials-file=")
	}
	// The URL of an upload lets whoever reads it go on with the upload.
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	answer, ok := errors.AsType[*googleapi.Error](err)
	if !ok {
		return err
	}
	e := &ServiceError{Status: answer.Code, after: remote.RetryAfter(answer.Header)}
	if len(answer.Errors) > 0 {
		e.Reason = printable(answer.Errors[0].Reason)
	}
	switch {
	case e.Reason == "retentionPolicyNotMet" || e.Reason == "objectUnderActiveHold" || strings.Contains(e.Reason, "etention"):
		return remote.WithHint(fmt.Errorf("%w: %w", store.ErrLocked, e), "it can be removed when the time it is kept for is over")
	case e.Status == http.StatusNotFound:
		return fmt.Errorf("%w: %w", store.ErrNotExist, e)
	case e.Status == http.StatusForbidden && (e.Reason == "rateLimitExceeded" || e.Reason == "userRateLimitExceeded"):
		e.Status = http.StatusTooManyRequests
	case e.Status == http.StatusForbidden:
		return remote.WithHint(fmt.Errorf("%w: %w", store.ErrDenied, e), "give the account the role Storage Object User (roles/storage.objectUser) on the bucket: docs/stores.md, Google Cloud Storage")
	case e.Status == http.StatusUnauthorized:
		return remote.WithHint(fmt.Errorf("%w: %w", store.ErrDenied, e), "the bucket wants credentials, or others: docs/stores.md, Google Cloud Storage")
	}
	return e
}

// bucketError gives a 404 its meaning where no object was asked for.
func bucketError(err error) error {
	if e, ok := errors.AsType[*googleapi.Error](err); ok && e.Code == http.StatusNotFound {
		return remote.WithHint(fmt.Errorf("%w: %w", ErrBucket, &ServiceError{Status: e.Code}), "create the bucket first: gcloud storage buckets create gs://BUCKET --uniform-bucket-level-access")
	}
	return err
}

// passes tells whether a request is worth repeating, and when.
func passes(err error) (bool, time.Duration) {
	if e, ok := errors.AsType[*ServiceError](err); ok {
		return remote.TemporaryStatus(e.Status), e.after
	}
	return remote.Temporary(err), 0
}

// printable keeps what reasons are made of.
func printable(reason string) string {
	reason = reason[:min(len(reason), 80)]
	return strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f {
			return r
		}
		return -1
	}, reason)
}
