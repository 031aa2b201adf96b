package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// Fields of an answer that is a disk: how many bytes it is, and behind it, as a
// trailer, what came of it.
const (
	SizeHeader     = "Lockstep-Size"
	OutcomeTrailer = "Lockstep-Outcome"
)

// WarningHeader is a field of an answer without a document: what there is to
// say beside it, once for each.
const WarningHeader = "Lockstep-Warning"

// StreamRequest asks for the bytes of a disk, in order.
type StreamRequest struct {
	Point      string `json:"point"`
	Repository string `json:"repository,omitempty" doc:"name of the repository to read from; empty = the nearest that has it"`
	RestorePart
	Rates
}

// StreamOutcome ends a disk's bytes: without it, or with an error, they are not
// all of it.
type StreamOutcome struct {
	Exit    int            `json:"exit"`
	Error   *Error         `json:"error,omitempty"`
	Restore *RestoreResult `json:"restore,omitempty"`
	// Warnings say which repositories could not be used, and what came from another.
	Warnings []string `json:"warnings,omitempty"`
}

// RestoreTo writes the bytes of a disk to w, in order, zeroes included. sized is
// called with their number before the first. Only a nil error means that all of
// them were written and are verified.
func (c *Client) RestoreTo(ctx context.Context, r StreamRequest, w io.Writer, sized func(int64)) (StreamOutcome, error) {
	resp, err := c.do(ctx, http.MethodPost, "application/octet-stream", r, nil, "restores", "stream")
	if err != nil {
		return StreamOutcome{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	size, err := strconv.ParseInt(resp.Header.Get(SizeHeader), 10, 64)
	if err != nil || size < 0 {
		return StreamOutcome{}, errors.New("restore: the server does not say how large the disk is")
	}
	if sized != nil {
		sized(size)
	}
	n, err := io.Copy(w, resp.Body)
	if err != nil {
		return StreamOutcome{}, fmt.Errorf("restore: after %d of %d bytes: %w", n, size, err)
	}
	var out StreamOutcome
	// The header of an answer is bounded, and so is this.
	if text := resp.Trailer.Get(OutcomeTrailer); text == "" || json.Unmarshal([]byte(text), &out) != nil {
		return out, fmt.Errorf("restore: the server does not say whether all came: %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	if out.Error != nil {
		return out, out.Error
	}
	if n != size {
		return out, fmt.Errorf("restore: %d of %d bytes came: %w", n, size, io.ErrUnexpectedEOF)
	}
	return out, nil
}
