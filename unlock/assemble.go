package unlock

// assemble puts together what lies on several devices, and says whether that
// gave anything new.
func (w *walker) assemble() bool { return false }
