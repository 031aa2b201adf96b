package api

import "time"

// SecretAdd takes a secret into custody.
type SecretAdd struct {
	Machine string `json:"machine"`
	Volume  string `json:"volume,omitempty" doc:"volume id, DISK/VOLUME, or unique prefix; empty = the whole machine"`
	Kind    string `json:"kind" enum:"passphrase,key-file,recovery-password,startup-key,volume-key,volume-master-key,veracrypt"`
	Data    []byte `json:"data" doc:"the secret, base64; never logged"`
	Keep    bool   `json:"keep,omitempty" doc:"keep it pre-active although it opens nothing"`
	Secret  string `json:"secret,omitempty" doc:"add a version to this secret id"`
	New     bool   `json:"new,omitempty" doc:"make a secret of its own rather than a version of the machine's"`
}

// SecretAddResult says what the secret opens.
type SecretAddResult struct {
	Secret   string        `json:"secret"`
	Version  int           `json:"version"`
	State    string        `json:"state"`
	Existing bool          `json:"existing" doc:"the same bytes were in custody already"`
	Opens    []SecretOpens `json:"opens"`
	Proven   []string      `json:"proven" doc:"recovery points that are proven now"`
	Messages []string      `json:"messages,omitempty"`
}

// SecretOpens is one header that a secret opens; Point is "" for the disk as it is now.
type SecretOpens struct {
	Point      string   `json:"point,omitempty"`
	Disk       string   `json:"disk"`
	Volume     string   `json:"volume"`
	Protectors []string `json:"protectors"`
}

// SecretDerive takes into custody the secrets that a volume of a recovery point
// keeps under its own key: BitLocker's recovery passwords and startup keys.
type SecretDerive struct {
	Point  string `json:"point" doc:"as everywhere: id, unique prefix, NAME@latest"`
	Disk   string `json:"disk"`
	Volume string `json:"volume"`
	Reason string `json:"reason" doc:"for the audit log: the secret that opens the volume is released for this"`
}

// SecretDeriveResult says what was derived, never the secrets.
type SecretDeriveResult struct {
	Point    string          `json:"point"`
	Disk     string          `json:"disk"`
	Volume   string          `json:"volume"`
	From     string          `json:"from" doc:"the secret that opened the volume, id@version, or clear key"`
	Secrets  []DerivedSecret `json:"secrets"`
	Messages []string        `json:"messages,omitempty"`
}

// DerivedSecret is one that a volume held.
type DerivedSecret struct {
	Protector string `json:"protector" doc:"that it opens"`
	Kind      string `json:"kind"`
	Secret    string `json:"secret"`
	Version   int    `json:"version"`
	State     string `json:"state"`
	Existing  bool   `json:"existing" doc:"it was in custody already"`
	Proven    bool   `json:"proven" doc:"it was shown to open this recovery point"`
}

// Secret is a secret without its bytes.
type Secret struct {
	ID       string          `json:"id"`
	Machine  string          `json:"machine,omitempty"`
	Volume   string          `json:"volume,omitempty"`
	Kind     string          `json:"kind"`
	Versions []SecretVersion `json:"versions"`
	// SealedCopies is filled where a version was destroyed just now.
	SealedCopies []SealedCopy `json:"sealed_copies,omitempty" doc:"after a destruction: key packages in the repository that still hold the version; a recovery identity opens them"`
}

// SealedCopy is a key package of a deleted recovery point.
type SealedCopy struct {
	Ref     string `json:"ref" doc:"id@version"`
	Machine string `json:"machine"`
	Point   string `json:"point"`
	Object  string `json:"object" doc:"in the repository"`
}

// SecretVersion is one version of a secret.
type SecretVersion struct {
	Version int                `json:"version"`
	Ref     string             `json:"ref" doc:"id@version"`
	State   string             `json:"state"`
	Created time.Time          `json:"created"`
	Expires *time.Time         `json:"expires,omitempty"`
	Holds   []SecretHold       `json:"holds"`
	History []SecretTransition `json:"history,omitempty"`
}

// SecretHold is one recovery point that needs the version.
type SecretHold struct {
	Repository string    `json:"repository"`
	Machine    string    `json:"machine"`
	Point      string    `json:"point"`
	Since      time.Time `json:"since"`
}

// SecretTransition is one dated change of state.
type SecretTransition struct {
	State  string    `json:"state"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

// Reason goes with whatever must name one.
type Reason struct {
	Reason string `json:"reason" minLength:"1"`
}

// Released carries a secret's bytes to who asked with a reason.
type Released struct {
	Ref  string `json:"ref"`
	Kind string `json:"kind"`
	Data []byte `json:"data"`
}
