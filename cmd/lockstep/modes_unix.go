//go:build unix

package main

import "syscall"

// restrictFileModes keeps files that this process makes from group and others:
// catalogs, logs and restored disks are nobody else's business.
func restrictFileModes() { syscall.Umask(0o077) }
