//go:build unix

package envelope

import (
	"fmt"
	"os"
)

func checkOwnerOnly(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", ErrKeyFile)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w: mode %04o, want 0600 (chmod go= %s)", ErrKeyFileOpen, st.Mode().Perm(), f.Name())
	}
	return nil
}
