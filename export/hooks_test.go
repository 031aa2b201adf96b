package export

// Header is header for tests from outside.
var Header = (*Point).header
