// Package envelope holds the cryptographic containers that everything small
// is kept in: AEAD frames, wrapped keys, signed statements (DSSE), files sealed
// to recipients (age), and the type that secrets travel in. Byte layouts are in
// docs/spec/envelope.md.
//
// It is not a key manager and knows neither repositories nor policy. Its
// invariant: no function hands on a byte that was not authenticated, where the
// caller has a key to authenticate with.
package envelope
