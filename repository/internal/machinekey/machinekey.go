// Package machinekey derives a machine's keys from its two secrets.
package machinekey

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
)

const purpose = "lockstep repository 1 "

// Keys are one machine's keys. Safe for concurrent use until Wipe.
type Keys struct {
	ID  string   // of the machine
	Raw [16]byte // the same as bytes

	Map, Metadata, Sidecar, Header *[32]byte

	content           envelope.Secret
	blockKey, nodeKey envelope.Secret
	secrets           []envelope.Secret
	digesters         sync.Pool
}

// New takes ownership of the two secrets, 32 bytes each.
func New(id string, metadata, content []byte) (*Keys, error) {
	if !format.ValidID(id) || len(metadata) != 32 || len(content) != 32 {
		return nil, fmt.Errorf("machine keys: %w", format.ErrCorrupt)
	}
	k := &Keys{ID: id, content: envelope.NewSecret(content)}
	if _, err := hex.Decode(k.Raw[:], []byte(id)); err != nil {
		return nil, fmt.Errorf("machine keys: %w", format.ErrCorrupt)
	}
	meta := envelope.NewSecret(metadata)
	k.secrets = []envelope.Secret{meta, k.content}
	derive := func(what string) envelope.Secret {
		s := envelope.DeriveKey(meta, purpose+what, k.Raw[:])
		k.secrets = append(k.secrets, s)
		return s
	}
	key := func(what string) *[32]byte { return (*[32]byte)(derive(what).Expose()) }
	k.Map, k.Metadata, k.Sidecar, k.Header = key("map"), key("metadata"), key("sidecar"), key("header")
	k.blockKey, k.nodeKey = derive("block digest"), derive("node digest")
	k.digesters.New = func() any {
		g, err := format.NewDigester(k.blockKey.Expose(), k.nodeKey.Expose())
		if err != nil {
			panic("machine keys: digest keys have 32 bytes: " + err.Error())
		}
		return g
	}
	return k, nil
}

// Digester lends a digester to one goroutine, until Release.
func (k *Keys) Digester() *format.Digester { return k.digesters.Get().(*format.Digester) }

// Release takes it back.
func (k *Keys) Release(g *format.Digester) { k.digesters.Put(g) }

// Segment is the cipher of one segment's extents.
func (k *Keys) Segment(id [format.IDSize]byte) (cipher.AEAD, error) {
	return newGCM(envelope.DeriveKey(k.content, purpose+"segment", k.Raw[:], id[:]))
}

// MapPages is the cipher of one map object's pages.
func (k *Keys) MapPages(id [format.IDSize]byte) (cipher.AEAD, error) {
	base := envelope.CopySecret(k.Map[:])
	defer base.Wipe()
	return newGCM(envelope.DeriveKey(base, purpose+"page", k.Raw[:], id[:]))
}

func newGCM(key envelope.Secret) (cipher.AEAD, error) {
	defer key.Wipe()
	b, err := aes.NewCipher(key.Expose())
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// Wipe forgets the keys.
func (k *Keys) Wipe() {
	for _, s := range k.secrets {
		s.Wipe()
	}
}
