//go:build !linux

package image

import (
	"io/fs"
	"os"
)

const devicesSupported = false

func (d *Disk) claimDevice() error { return nil }

func sameDisk(a, b fs.FileInfo) bool { return os.SameFile(a, b) }

func isRefused(error) bool { return false }

func noSuchDevice(error) bool { return false }

func (d *Disk) adviseSequential() {}

// mostlyCached: there is no choice to make without direct I/O.
func (d *Disk) mostlyCached() bool { return true }
