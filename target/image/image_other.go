//go:build !linux

package image

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
)

const (
	devicesSupported = false
	removeWhileOpen  = runtime.GOOS != "windows"
)

func exclusive(fs.FileInfo) int { return 0 }

func isBusy(error) bool { return false }

func isRefused(error) bool { return false }

// syncFolder: Windows has no such call, and makes names durable itself.
func syncFolder(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
