//go:build !amd64 || purego

package aesni

// Supported reports whether this processor has the instructions.
func Supported() bool { return false }

const absent = "aesni: not built in"

// New must not be called unless Supported.
func New([]byte) (*Key, error) { panic(absent) }

// BlockSize is cipher.Block's.
func (k *Key) BlockSize() int { return BlockSize }

// Encrypt is not built in.
func (k *Key) Encrypt(_, _ []byte) { panic(absent) }

// Decrypt is not built in.
func (k *Key) Decrypt(_, _ []byte) { panic(absent) }

// EncryptXTS is not built in.
func (k *Key) EncryptXTS(*Key, []byte, int, *[BlockSize]byte, uint64) { panic(absent) }

// DecryptXTS is not built in.
func (k *Key) DecryptXTS(*Key, []byte, int, *[BlockSize]byte, uint64) { panic(absent) }

// EncryptCBC is not built in.
func (k *Key) EncryptCBC([]byte, *[BlockSize]byte) { panic(absent) }

// DecryptCBC is not built in.
func (k *Key) DecryptCBC([]byte, *[BlockSize]byte) { panic(absent) }
