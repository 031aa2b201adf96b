package s3

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

// errNoBucket says that the bucket is not there, which is another thing than an
// object that is not.
var errNoBucket = errors.New("bucket does not exist")

// again says whether a failure may pass.
func again(err error) (bool, time.Duration) {
	if r, ok := response(err); ok {
		switch r.Code {
		case "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException",
			"RequestLimitExceeded", "OperationAborted", "ConditionalRequestConflict",
			// The body was damaged on its way; the next copy may not be.
			"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody":
			return true, 0
		case "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage":
			return false, 0
		}
		return remote.TemporaryStatus(r.StatusCode), 0
	}
	return remote.Temporary(err), 0
}

func response(err error) (minio.ErrorResponse, bool) {
	var r minio.ErrorResponse
	ok := errors.As(err, &r) && (r.StatusCode != 0 || r.Code != "")
	return r, ok
}

// describe gives an error the type that callers act on, and the operator a hint.
func describe(err error) error {
	r, ok := response(err)
	if !ok {
		if remote.Unreachable(err) {
			return remote.WithHint(err, "nothing answers there: check endpoint=… in the repository's URL, that the service runs, and that no firewall is between")
		}
		return err
	}
	typed := func(as error) error { return fmt.Errorf("%w: %w", as, err) }
	switch r.Code {
	case "NoSuchBucket":
		return remote.WithHint(typed(errNoBucket), "make the bucket first, in the region the URL names; Lockstep makes objects, not buckets")
	case "NoSuchKey", "NoSuchVersion":
		return typed(store.ErrNotExist)
	case "PreconditionFailed":
		return typed(store.ErrExist)
	case "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "EntityTooLarge":
		return typed(store.ErrFull)
	case "RequestTimeTooSkewed":
		return remote.WithHint(typed(store.ErrDenied), "this machine's clock is wrong: the service refuses signatures made minutes away from its own time")
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed":
		return remote.WithHint(typed(store.ErrDenied), "the credentials are not accepted: check the key, the secret, and the region; "+credentialsHint)
	case "AccessDenied", "AllAccessDisabled", "AccountProblem":
		return remote.WithHint(typed(store.ErrDenied), "the credentials lack a right: docs/stores.md lists the permissions that a repository needs")
	case "KMS.NotFoundException", "KMS.DisabledException", "InvalidStorageClass":
		return remote.WithHint(err, "check sse=… and storage-class=… in the repository's URL")
	case "NotImplemented":
		return remote.WithHint(err, "the service lacks what a repository needs: 'lockstep repository check-store URL' says what")
	}
	switch r.StatusCode {
	case http.StatusNotFound:
		return typed(store.ErrNotExist)
	case http.StatusPreconditionFailed:
		return typed(store.ErrExist)
	case http.StatusUnauthorized, http.StatusForbidden:
		return remote.WithHint(typed(store.ErrDenied), "docs/stores.md lists the permissions that a repository needs")
	case http.StatusInsufficientStorage:
		return typed(store.ErrFull)
	}
	return err
}

// unaccepted tells whether the service does not take the credentials, or the
// clock that signs with them.
func unaccepted(err error) bool {
	return isCode(err, "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
		"AuthorizationHeaderMalformed", "RequestTimeTooSkewed")
}

func isCode(err error, codes ...string) bool {
	r, ok := response(err)
	for _, c := range codes {
		if ok && r.Code == c {
			return true
		}
	}
	return false
}

func isStatus(err error, status int) bool {
	r, ok := response(err)
	return ok && r.StatusCode == status
}
