//go:build !linux

package main

import "net"

// peer is not asked for: the mode of the socket and of its folder decide.
func peer(net.Conn) (uid int, known bool, err error) { return 0, false, nil }
