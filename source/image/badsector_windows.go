package image

import (
	"errors"

	"golang.org/x/sys/windows"
)

func isBadSector(err error) bool {
	return errors.Is(err, windows.ERROR_CRC) || errors.Is(err, windows.ERROR_SECTOR_NOT_FOUND) || errors.Is(err, windows.ERROR_READ_FAULT) || errors.Is(err, windows.ERROR_IO_DEVICE)
}
