package shell

// StoreCheckOptions say which store is checked.
type StoreCheckOptions struct {
	URL    string
	Report func(StoreCheck) // called as each check ends
}

// StoreCheck is how one check of a store went.
type StoreCheck struct {
	Name    string   `json:"check"`
	Outcome string   `json:"outcome"` // "passed", "failed" or "not applicable"
	Details []string `json:"details"`
	Seconds float64  `json:"seconds"`
}

// StoreCheckResult is what came out of all of them.
type StoreCheckResult struct {
	Store    string       `json:"store"`
	Passed   bool         `json:"passed"`
	Requests int64        `json:"requests"` // to a remote store, repeated ones included
	Checks   []StoreCheck `json:"checks"`
}
