package diskcrypt

import (
	"crypto/hmac"
	"crypto/sha256"
)

// KeyMAC is what Opened.KeyMAC gives, for a container's id, which may be empty,
// and its volume key. Nothing of the volume key is left in memory.
func KeyMAC(key []byte, id string, volumeKey []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte("vk"))
	m.Write([]byte(id))
	m.Write(volumeKey)
	sum := m.Sum(nil)
	m.Write(make([]byte, 2*sha256.BlockSize)) // over what it holds of a block that is not full
	return sum
}
