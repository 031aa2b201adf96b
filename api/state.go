// Package api holds the wire types of Lockstep's HTTP API and its client. The
// CLI, the portal and scripts use nothing else. JSON names are a contract
// (see docs/cli.md); times are RFC 3339 UTC, sizes bytes.
package api

// States of a recovery point.
const (
	StateProven        = "proven"
	StateAtRisk        = "at-risk"
	StateUnproven      = "unproven"
	StateUnrecoverable = "unrecoverable"
	StateShredded      = "shredded"
	StatePlain         = "plain"
	StateOpaque        = "opaque"
)
