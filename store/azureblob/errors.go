package azureblob

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

// ErrContainer says that the container is not there.
var ErrContainer = errors.New("container does not exist")

// ServiceError is what the service answered.
type ServiceError struct {
	Status int
	Code   string // of the service, may be empty
	after  time.Duration
}

func (e *ServiceError) Error() string {
	if e.Code == "" {
		return fmt.Sprintf("server answered with status %d", e.Status)
	}
	return fmt.Sprintf("server answered with status %d %s", e.Status, e.Code)
}

// translate gives an error the store's meaning. The SDK's own text goes: it
// fills a page, and repeats parts of the request.
func translate(err error) error {
	var sign *azidentity.AuthenticationFailedError
	var answer *azcore.ResponseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &sign):
		return remote.WithHint(fmt.Errorf("%w: signing in failed: %s", store.ErrDenied, oneLine(sign.Error())),
			"sign in (az login), give the machine a managed identity, or name a file with a key by credentials-file=")
	case !errors.As(err, &answer):
		return err
	}
	e := &ServiceError{Status: answer.StatusCode, Code: printable(answer.ErrorCode)}
	if answer.RawResponse != nil {
		e.after = remote.RetryAfter(answer.RawResponse.Header)
	}
	switch bloberror.Code(e.Code) {
	case bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted, bloberror.ContainerDisabled:
		return remote.WithHint(fmt.Errorf("%w: %w", ErrContainer, e), "create the container first: az storage container create")
	case bloberror.BlobImmutableDueToPolicy:
		return remote.WithHint(fmt.Errorf("%w: %w", store.ErrLocked, e), "it can be removed when the time it is kept for is over")
	case bloberror.BlobArchived:
		return remote.WithHint(e, "the blob lies in the archive tier: rehydrate it (az storage blob set-tier)")
	}
	switch e.Status {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", store.ErrNotExist, e)
	case http.StatusForbidden:
		return remote.WithHint(fmt.Errorf("%w: %w", store.ErrDenied, e), hintForbidden(e.Code))
	case http.StatusUnauthorized:
		return remote.WithHint(fmt.Errorf("%w: %w", store.ErrDenied, e), "the account wants credentials, or others: see docs/stores.md, Azure Blob")
	}
	return e
}

func hintForbidden(code string) string {
	switch bloberror.Code(code) {
	case bloberror.AuthenticationFailed:
		return "the key or the SAS is wrong or has expired, or this machine's clock is wrong"
	case bloberror.AuthorizationPermissionMismatch, bloberror.InsufficientAccountPermissions, bloberror.AuthorizationResourceTypeMismatch:
		return "give the identity the role Storage Blob Data Contributor on the container, or the SAS the permissions racwdl"
	case bloberror.AuthorizationFailure, bloberror.AuthorizationSourceIPMismatch:
		return "the account's firewall does not let this machine in, or the identity has no role on the container"
	}
	return "check the credentials, their role on the container, and the account's firewall: docs/stores.md, Azure Blob"
}

// containerError gives the answers to questions for the container their
// meaning: an answer without a body may have no code.
func containerError(err error) error {
	var answer *azcore.ResponseError
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		answer.ErrorCode = string(bloberror.ContainerNotFound)
	}
	return err
}

// existsAlready drops what another made first.
func existsAlready(err error) error {
	if bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		return nil
	}
	return err
}

// creating gives the answers to a conditional creation their meaning.
func creating(err error) error {
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) {
		return err
	}
	switch bloberror.Code(answer.ErrorCode) {
	case bloberror.BlobAlreadyExists, bloberror.BlobImmutableDueToPolicy:
		return store.ErrExist
	}
	if answer.StatusCode == http.StatusPreconditionFailed {
		return store.ErrExist
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

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), 600)]
}

// printable keeps what codes are made of.
func printable(code string) string {
	code = code[:min(len(code), 80)]
	return strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f {
			return r
		}
		return -1
	}, code)
}

func blockID(attempt string, n int) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s-%08d", attempt, n))
}
