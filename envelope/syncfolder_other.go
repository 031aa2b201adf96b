//go:build !unix

package envelope

// syncFolder has nothing to do: NTFS journals the names, and a folder cannot
// be flushed by itself.
func syncFolder(string) error { return nil }
