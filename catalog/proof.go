package catalog

import (
	"context"
	"time"
)

// Proof is what a proof sidecar states: this secret version opened this volume
// of this recovery point.
type Proof struct {
	Key        string // of the sidecar, in the store
	Point      string
	Disk       string
	Volume     string
	Secret     string
	Version    int
	Protectors []string // ids that the secret opened
	Recognised string   // class of what was recognised behind it, or "none"
	KeyCheck   string
	Time       time.Time
	Signer     string // key id of the prover
	VKProof    string // hex; equal ones of an installation mean equal volume keys; "" = it says nothing
}

// Attempt is what came of trying a secret version on a header, whatever
// recovery points have it.
type Attempt struct {
	HeaderDigest string
	Secret       string
	Version      int
	Opened       []string // protector ids; empty = it opens nothing there
	Time         time.Time
}

// Proofs are proofs and attempts.
type Proofs interface {
	// Put records a proof; once per key. The recovery point need not be known yet.
	Put(ctx context.Context, p Proof) error
	// OfPoint returns the proofs of a recovery point by time.
	OfPoint(ctx context.Context, point string) ([]Proof, error)
	// OfMachine returns the proofs of all recovery points of a machine, in one query, by time.
	OfMachine(ctx context.Context, machine string) ([]Proof, error)
	// OfSecret returns the proofs made with one version of a secret, by time.
	OfSecret(ctx context.Context, secret string, version int) ([]Proof, error)
	// PutAttempt records an attempt in place of an earlier one with the same
	// header and version.
	PutAttempt(ctx context.Context, a Attempt) error
	// Attempts returns what was tried on a header, by secret and version.
	Attempts(ctx context.Context, headerDigest string) ([]Attempt, error)
	// Forget deletes a proof whose sidecar turned out not to be valid.
	Forget(ctx context.Context, key string) error
}

// Package is a key package: secrets sealed to recovery recipients, beside a recovery point.
type Package struct {
	Key        string // of the sidecar, in the store
	Point      string
	Recipients []string
	Refs       []string // secret versions inside, "id@version"
	Time       time.Time
}

// HeaderPackage is a header inside a key package.
type HeaderPackage struct {
	Key          string // of the sidecar, in the store
	Machine      string
	HeaderDigest string
	Recipients   []string
}

// Packages are key packages and header packages.
type Packages interface {
	// Put records a key package; once per key.
	Put(ctx context.Context, p Package) error
	// OfPoint returns the key packages of a recovery point by time.
	OfPoint(ctx context.Context, point string) ([]Package, error)
	// OfMachine returns the key packages of all recovery points of a machine, by time.
	OfMachine(ctx context.Context, machine string) ([]Package, error)
	// PutHeader records a header package; once per key and header.
	PutHeader(ctx context.Context, p HeaderPackage) error
	// Headers returns the header packages of a machine.
	Headers(ctx context.Context, machine string) ([]HeaderPackage, error)
	// Forget deletes a key package or header package whose sidecar is gone.
	Forget(ctx context.Context, key string) error
}

// Declaration says that a volume is not needed, and why.
type Declaration struct {
	Key       string // of the sidecar, in the store
	Machine   string
	Disk      string
	Volume    string
	Reason    string
	Time      time.Time
	Withdrawn bool // it takes back the earlier ones
}

// Declarations are statements about volumes. Of several about one volume the
// last by time holds.
type Declarations interface {
	// Put records a declaration; once per key.
	Put(ctx context.Context, d Declaration) error
	// OfMachine returns all of a machine's, by time, withdrawals too.
	OfMachine(ctx context.Context, machine string) ([]Declaration, error)
}
