//go:build !linux

package hostos

import "net"

// Peer is not asked for: the mode of the socket and of its folder decide.
func Peer(net.Conn) (uid int, known bool, err error) { return 0, false, nil }
