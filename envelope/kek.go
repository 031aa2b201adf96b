package envelope

import "context"

// KEK is a key-encryption key that stays where it is: in a key manager, a
// token, a cloud KMS. Key managers implement it; repository uses it, so that
// repository need not know key managers.
type KEK interface {
	// ID names the key (and its version) for ever; it is stored beside what was wrapped.
	ID() string
	// Wrap seals key; context binds the wrapping to its use and must be given again to Unwrap.
	Wrap(ctx context.Context, key Secret, context []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, context []byte) (Secret, error)
}
